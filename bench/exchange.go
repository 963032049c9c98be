package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

// client does the exchange of one user's renewal as a peer would.
type client struct {
	do   func(ctx context.Context, r request) (status int, body []byte, err error)
	base string
}

// request is one call. A request with a form is posted, any other is a GET.
type request struct {
	url, bearer, form string
}

// newClient calls with net/http, and keeps a connection for each worker.
func newClient(base string, workers int) *client {
	t := &http.Transport{
		MaxIdleConns:        workers,
		MaxIdleConnsPerHost: workers,
		MaxConnsPerHost:     workers,
		IdleConnTimeout:     time.Minute,
	}
	c := &http.Client{Transport: t, Timeout: callLimit}
	return &client{
		base: base,
		do:   func(ctx context.Context, r request) (int, []byte, error) { return r.send(ctx, c) },
	}
}

const (
	callLimit = 20 * time.Second
	bodyLimit = 1 << 16
)

func (r request) send(ctx context.Context, c *http.Client) (int, []byte, error) {
	method, body := http.MethodGet, io.Reader(nil)
	if r.form != "" {
		method, body = http.MethodPost, strings.NewReader(r.form)
	}
	req, err := http.NewRequestWithContext(ctx, method, r.url, body)
	if err != nil {
		return 0, nil, err
	}
	if r.form != "" {
		req.Header.Set("Content-Type", formType)
	}
	if r.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+r.bearer)
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, bodyLimit))
	return res.StatusCode, text, err
}

const formType = "application/x-www-form-urlencoded"

// newLeanClient calls with fasthttp, which knows neither contexts nor HTTP/2.
func newLeanClient(base string, workers int) *client {
	c := &fasthttp.Client{
		MaxConnsPerHost:     workers,
		ReadTimeout:         callLimit,
		WriteTimeout:        callLimit,
		MaxResponseBodySize: bodyLimit,
	}
	return &client{
		base: base,
		do:   func(_ context.Context, r request) (int, []byte, error) { return r.sendLean(c) },
	}
}

func (r request) sendLean(c *fasthttp.Client) (int, []byte, error) {
	req, res := fasthttp.AcquireRequest(), fasthttp.AcquireResponse()
	defer fasthttp.ReleaseRequest(req)
	defer fasthttp.ReleaseResponse(res)
	req.SetRequestURI(r.url)
	if r.form != "" {
		req.Header.SetMethod(fasthttp.MethodPost)
		req.Header.SetContentType(formType)
		req.SetBodyString(r.form)
	}
	if r.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+r.bearer)
	}
	err := c.Do(req, res)
	return res.StatusCode(), bytes.Clone(res.Body()), err
}

// renewed is the result of a renewal.
type renewed struct {
	access, refresh string
	expires         time.Time
	profile         []byte
}

// exchange renews one user. A long exchange asks userinfo first, with the present access token, as
// an app does when it cannot tell whether the access token is good.
func (c *client) exchange(
	ctx context.Context, access, refresh string, long bool,
) (r renewed, err error) {
	if long {
		status, _, err := c.userInfo(ctx, access)
		if err != nil {
			return r, err
		}
		if status != http.StatusUnauthorized {
			return r, fmt.Errorf("userinfo with an expired token: status %d", status)
		}
	}
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"refresh_token": {refresh},
		"client_id":     {"renewd-test"},
	}
	sent := time.Now()
	status, body, err := c.do(ctx, request{
		url:  c.base + "/propelauth/oauth/token",
		form: form.Encode(),
	})
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
	r = renewed{
		access:  answer.Access,
		refresh: answer.Refresh,
		expires: sent.Add(time.Duration(answer.ExpiresIn) * time.Second),
	}
	if status, r.profile, err = c.userInfo(ctx, r.access); err != nil {
		return r, err
	}
	var profile struct {
		ID string `json:"user_id"`
	}
	if err := json.Unmarshal(r.profile, &profile); err != nil || status != http.StatusOK ||
		profile.ID == "" {
		return r, fmt.Errorf("userinfo: status %d", status)
	}
	return r, nil
}

func (c *client) userInfo(ctx context.Context, access string) (int, []byte, error) {
	return c.do(ctx, request{url: c.base + "/propelauth/oauth/userinfo", bearer: access})
}
