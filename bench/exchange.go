package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// client does the exchange of one user's renewal as a peer would: net/http, a connection for each worker.
type client struct {
	http *http.Client
	base string
}

func newClient(base string, workers int) *client {
	t := &http.Transport{MaxIdleConns: workers, MaxIdleConnsPerHost: workers, MaxConnsPerHost: workers, IdleConnTimeout: time.Minute}
	return &client{&http.Client{Transport: t, Timeout: 20 * time.Second}, base}
}

// renewed is what a renewal brings.
type renewed struct {
	access, refresh string
	expires         time.Time
	profile         []byte
}

// exchange renews one user. A long one asks userinfo first, with the token that it has, as apps do that cannot tell whether
// it is good.
func (c *client) exchange(ctx context.Context, access, refresh string, long bool) (r renewed, err error) {
	if long {
		status, _, err := c.userInfo(ctx, access)
		if err != nil {
			return r, err
		}
		if status != http.StatusUnauthorized {
			return r, fmt.Errorf("userinfo with an expired token: status %d", status)
		}
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "client_id": {"renewd-test"}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/propelauth/oauth/token", strings.NewReader(form.Encode()))
	if err != nil {
		return r, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	sent := time.Now()
	status, body, err := c.do(req)
	if err != nil {
		return r, err
	}
	var answer struct {
		Access    string `json:"access_token"`
		Refresh   string `json:"refresh_token"`
		ExpiresIn int    `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusOK {
		return r, fmt.Errorf("token: status %d", status)
	}
	r = renewed{access: answer.Access, refresh: answer.Refresh, expires: sent.Add(time.Duration(answer.ExpiresIn) * time.Second)}
	if status, r.profile, err = c.userInfo(ctx, r.access); err != nil {
		return r, err
	}
	var profile struct {
		ID string `json:"user_id"`
	}
	if err := json.Unmarshal(r.profile, &profile); err != nil || status != http.StatusOK || profile.ID == "" {
		return r, fmt.Errorf("userinfo: status %d", status)
	}
	return r, nil
}

func (c *client) userInfo(ctx context.Context, access string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+"/propelauth/oauth/userinfo", nil)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+access)
	return c.do(req)
}

func (c *client) do(req *http.Request) (int, []byte, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	return res.StatusCode, body, err
}
