package standin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// What a fault does to the answer, and whether the provider did its part before.
func TestFaults(t *testing.T) {
	huge := strings.Repeat("x", 1<<20)
	for name, tt := range map[string]struct {
		fault   standin.Fault
		code    string
		rotated bool
	}{
		"none":                  {standin.Fault{}, "", true},
		"late":                  {standin.Fault{Delay: time.Millisecond}, "", true},
		"late, after rotating":  {standin.Fault{Act: true, Delay: time.Millisecond}, "", true},
		"dropped":               {standin.Fault{Drop: true}, "broken", false},
		"rotated, then dropped": {standin.Fault{Act: true, Drop: true}, "broken", true},
		"refused": {
			standin.Fault{Status: 400, Body: `{"error":"slow_down"}`}, "slow_down", false,
		},
		"rotated, then 502": {
			standin.Fault{Act: true, Status: 502, Body: "Bad Gateway"}, "broken", true,
		},
		"html":               {standin.Fault{Status: 200, Body: "<html>"}, "broken", false},
		"huge":               {standin.Fault{Status: 200, Body: huge}, "broken", false},
		"half, then dropped": {standin.Fault{Truncate: true}, "broken", true},
		"half as if all":     {standin.Fault{Half: true}, "broken", true},
	} {
		var seen []standin.Presentation
		var mu sync.Mutex
		observed := make(chan struct{})
		s, base := start(t, standin.Options{Observe: func(p standin.Presentation) {
			mu.Lock()
			seen = append(seen, p)
			mu.Unlock()
			close(observed)
		}})
		token := s.Login("u").Refresh
		s.SetFault(func(standin.Request) *standin.Fault { return &tt.fault })
		_, code := refresh(t, base, token)
		<-observed
		if code != tt.code || s.Valid(token) == tt.rotated || s.Stats().Rotated == 1 != tt.rotated {
			t.Errorf("%s: %q, %+v", name, code, s.Stats())
		}
		mu.Lock()
		if p := seen[0]; len(seen) != 1 || p.User != "u" ||
			(p.Verdict == standin.Renewed) != tt.rotated ||
			(p.Verdict == standin.Unread) == tt.rotated ||
			p.Lost != (tt.rotated && tt.code != "") {
			t.Errorf("%s: observed %+v", name, seen)
		}
		mu.Unlock()
	}
}

func TestHang(t *testing.T) {
	s, base := start(t, standin.Options{})
	token := s.Login("u").Refresh
	arrived := make(chan struct{}, 1)
	s.SetFault(func(standin.Request) *standin.Fault {
		arrived <- struct{}{}
		return &standin.Fault{Act: true, Hang: true}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	form := url.Values{
		"grant_type":    {"refresh_token"},
		"client_id":     {"renewd-test"},
		"refresh_token": {token},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/propelauth/oauth/token",
		strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	go func() { <-arrived; cancel() }()
	res, err := http.DefaultClient.Do(req)
	if err == nil {
		res.Body.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an answer came: %v", err)
	}
}

func TestAdmin(t *testing.T) {
	s, base := start(t, standin.Options{Admin: true})
	admin := func(path string, form url.Values) (int, string) {
		return post(t, base+"/_admin/"+path, "application/x-www-form-urlencoded", form.Encode())
	}
	u := url.Values{"user": {"u"}}
	_, body := admin("login", u)
	var tokens standin.Tokens
	if err := json.Unmarshal([]byte(body), &tokens); err != nil || !s.Valid(tokens.Refresh) {
		t.Fatalf("%s %v", body, err)
	}
	if _, body := admin("valid", url.Values{
		"refresh_token": {tokens.Refresh},
	}); strings.TrimSpace(body) != "true" {
		t.Error(body)
	}
	if status, _ := admin("edit", url.Values{
		"user":    {"u"},
		"profile": {`{"locked":true}`},
	}); status != 200 {
		t.Error(status)
	}
	if _, body := userInfo(t, base, tokens.Access); !strings.Contains(body, `"locked":true`) {
		t.Error(body)
	}
	if status, _ := admin("edit", url.Values{
		"user":    {"u"},
		"profile": {"rubbish"},
	}); status != 400 {
		t.Error(status)
	}
	for _, tt := range []struct {
		path string
		live bool
		// in this order: the last one decides what is asked below
	}{{"disable", false}, {"enable", true}, {"end", false}} {
		s.Login("u")
		if admin(tt.path, u); s.Live("u") != tt.live {
			t.Errorf("%s: live %v", tt.path, !tt.live)
		}
		s.Enable("u")
	}
	for path, want := range map[string]string{
		"stats":       `"sessions":4`,
		"users":       `["u"]`,
		"user?user=u": `"logins":4`,
		"live?user=u": "false",
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/_admin/"+path,
			nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, body := fetch(t, req); !strings.Contains(body, want) {
			t.Errorf("%s: %s, want %s", path, body, want)
		}
	}
}

func TestAdminFaults(t *testing.T) {
	s, base := start(t, standin.Options{Admin: true})
	order := func(body string) int {
		status, _ := post(t, base+"/_admin/fault", "application/json", body)
		return status
	}
	codes := func() (all []string) {
		for range 4 {
			_, code := refresh(t, base, s.Login("u").Refresh)
			all = append(all, code)
		}
		return all
	}
	const slowDown = `{"op":"token","status":429,"body":"{\"error\":\"slow_down\"}",` +
		`"header":{"retry-after":"3"},"times":2}`
	const everyOther = `{"user":"u","status":400,"body":"{\"error\":\"x\"}","every":2}`
	for body, want := range map[string]string{
		slowDown:                         "[slow_down slow_down  ]",
		everyOther:                       "[ x  x]",
		`{"op":"userinfo","status":500}`: "[   ]",
		`{"user":"v","status":500}`:      "[   ]",
		`{"act":true,"drop":true}`:       "[broken broken broken broken]",
		`{}`:                             "[   ]",
	} {
		if status := order(body); status != 200 {
			t.Errorf("%s: %d", body, status)
		}
		if got := fmt.Sprint(codes()); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
	for _, body := range []string{`{"status":99}`, `{"statsu":500}`, `x`} {
		if status := order(body); status != 400 {
			t.Errorf("%s: %d", body, status)
		}
	}
}
