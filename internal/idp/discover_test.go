package idp_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

// document is a provider with a discovery document, which answer makes from the provider's address.
// What its token endpoint gets goes to seen.
func document(
	t *testing.T, answer func(base string) (status int, body string), seen func(*http.Request),
) *httptest.Server {
	t.Helper()
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			status, body := answer(s.URL)
			w.Header().Set("Retry-After", "9")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
		case "/revoke", "/other":
			seen(r)
		case "/token":
			if seen != nil {
				seen(r)
			}
			_, _ = w.Write([]byte(`{"access_token":"a"}`))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func oidcAt(issuer, base, more string) string {
	return fmt.Sprintf(`{"issuer":%q,"token_endpoint":%q,"userinfo_endpoint":%q%s}`, issuer,
		base+"/token", base+"/me", more)
}

func asOIDC(c *idp.Config) { c.Preset = "oidc" }

func TestUndiscovered(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(base string) (int, string)
		class  grant.Class
		wait   time.Duration
		says   string
	}{
		"down": {
			func(string) (int, string) { return 502, "canary" }, grant.Unsent, 9 * time.Second,
			"no OpenID configuration at",
		},
		"throttled": {
			func(string) (int, string) { return 429, "canary" }, grant.Throttled, 9 * time.Second,
			"",
		},
		"not there": {
			func(string) (int, string) { return 404, "canary" }, grant.Config, 9 * time.Second,
			"auth_url",
		},
		"a redirect": {
			func(string) (int, string) { return 302, "canary" }, grant.Config, 9 * time.Second,
			"auth_url",
		},
		"html": {
			func(string) (int, string) { return 200, "<html>canary" }, grant.Unsent,
			9 * time.Second, "no OpenID configuration at",
		},
		"endless": {
			func(string) (int, string) {
				return 200, `{"canary":"` + strings.Repeat("x", 3<<20) + `"}`
			}, grant.Unsent, 9 * time.Second, "",
		},
		"other issuer": {
			func(base string) (int, string) { return 200, oidcAt(base+"/other", base, "") },
			grant.Config, 9 * time.Second, "/other",
		},
		"odd members": {
			func(base string) (int, string) {
				return 200, oidcAt(base, base, `,"revocation_endpoint":[]`)
			}, grant.Config, 0, "malformed",
		},
		"in the clear": {
			func(base string) (int, string) { return 200, oidcAt(base, "http://example.com", "") },
			grant.Config, 0, "token_url",
		},
		"no userinfo": {func(base string) (int, string) {
			return 200, fmt.Sprintf(`{"issuer":%q,"token_endpoint":%q}`, base, base)
		}, grant.Config, 0, "userinfo_url"},
		"issuer of ESC": {
			func(base string) (int, string) { return 200, oidcAt(base+`\u001b[31m`, base, "") },
			grant.Config, 9 * time.Second, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := fault(t, open(t, document(t, tt.answer, nil).URL, asOIDC))
			if f.Op != "discovery" || f.Class != tt.class || f.RetryAfter != tt.wait ||
				!strings.Contains(f.Error(), tt.says) || strings.ContainsRune(f.Error(), 0x1b) {
				t.Errorf("%v, Retry-After %v; want %s, %v", f, f.RetryAfter, tt.class, tt.wait)
			}
		})
	}
}

// Auth0's issuer ends in a slash, whether the operator types it or not.
func TestIssuerWithSlash(t *testing.T) {
	s := document(t, func(base string) (int, string) { return 200, oidcAt(base+"/", base, "") },
		nil)
	for _, typed := range []string{s.URL, s.URL + "/"} {
		if _, err := open(t, typed, func(c *idp.Config) { c.Preset = "auth0" }).Refresh(
			t.Context(), secret.New(canary),
		); err != nil {
			t.Error(err)
		}
	}
}

func TestOverridesStandInForDiscovery(t *testing.T) {
	s := document(t, func(base string) (int, string) {
		return 200, fmt.Sprintf(`{"issuer":%q,"token_endpoint":"/odd"}`, base)
	}, nil)
	p := open(t, s.URL, func(c *idp.Config) {
		c.Preset, c.TokenURL, c.UserInfoURL = "oidc", s.URL+"/token", s.URL+"/me"
	})
	if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
		t.Error(err)
	}
}

// Without a word in the settings the client authenticates in the way that the provider offers.
func TestClientAuthenticationFromDiscovery(t *testing.T) {
	for offered, basic := range map[string]bool{
		`["client_secret_basic"]`:                      true,
		`["client_secret_post"]`:                       false,
		`["client_secret_post","client_secret_basic"]`: true,
		`["private_key_jwt"]`:                          true,
		"":                                             true,
	} {
		if offered != "" {
			offered = `,"token_endpoint_auth_methods_supported":` + offered
		}
		for _, auth := range []idp.ClientAuth{idp.AuthAuto, idp.AuthPost} {
			var form url.Values
			var header string
			s := document(t,
				func(base string) (int, string) { return 200, oidcAt(base, base, offered) },
				func(r *http.Request) {
					form, header = r.PostForm, r.Header.Get("Authorization")
				})
			p := open(t, s.URL, func(c *idp.Config) {
				c.Preset, c.ClientAuth, c.ClientSecret = "oidc", auth, secret.New("secret")
			})
			if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
				t.Fatal(err)
			}
			want := basic && auth == idp.AuthAuto
			if want != (header != "") || want == form.Has("client_secret") ||
				want == form.Has("client_id") {
				t.Errorf("offered %s, set %q: Authorization %q, form %v", offered, auth, header,
					form)
			}
		}
	}
}

// While the provider does not answer, everybody waits for one attempt, and only as long as they
// like.
func TestDiscoveryIsShared(t *testing.T) {
	var asked atomic.Int32
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	s := document(t, func(base string) (int, string) {
		asked.Add(1)
		arrived <- struct{}{}
		<-release
		return 200, oidcAt(base, base, "")
	}, nil)
	p := open(t, s.URL, asOIDC)
	var wg sync.WaitGroup
	refresh := func() {
		if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
			t.Error(err)
		}
	}
	wg.Go(refresh)
	<-arrived
	for range 20 {
		wg.Go(refresh)
	}
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Refresh(hurried, secret.New(canary))
	if f, ok := errors.AsType[*grant.Fault](err); !ok || f.Class != grant.Unsent ||
		!errors.Is(err, context.Canceled) {
		t.Errorf("who gives up: %v", err)
	}
	close(release)
	wg.Wait()
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// If the call that asked gives up, that says nothing about the provider: the next call asks.
func TestDiscoveryOutlivesWhoAsked(t *testing.T) {
	var asked atomic.Int32
	first := make(chan struct{})
	s := document(t, func(base string) (int, string) {
		if asked.Add(1) == 1 {
			close(first)
			<-t.Context().Done()
		}
		return 200, oidcAt(base, base, "")
	}, nil)
	p := open(t, s.URL, asOIDC)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Refresh(ctx, secret.New(canary)); !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up: %v", err)
		}
	})
	<-first
	wg.Go(func() {
		if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
			t.Errorf("who came next: %v", err)
		}
	})
	cancel()
	wg.Wait()
}

// RFC 7009 section 2.1: the token with its hint, the client named as for a refresh. The endpoint is
// the settings', else the one that discovery names.
func TestRevoke(t *testing.T) {
	var form url.Values
	var path, authorization string
	s := document(t, func(base string) (int, string) {
		return 200, oidcAt(base, base, fmt.Sprintf(`,"revocation_endpoint":%q`, base+"/revoke"))
	},
		func(r *http.Request) {
			form, path, authorization = r.PostForm, r.URL.Path, r.Header.Get("Authorization")
		})
	if err := open(t, s.URL, asOIDC).Revoke(t.Context(), secret.New(canary)); err != nil ||
		path != "/revoke" ||
		form.Get("token") != canary || form.Get("token_type_hint") != "refresh_token" ||
		form.Get("client_id") != "client" {
		t.Errorf("%v %s %v", err, path, form)
	}
	withSecret := func(c *idp.Config) {
		c.RevokeURL, c.ClientSecret, c.ClientAuth = s.URL+"/other", secret.New("secret"),
			idp.AuthBasic
	}
	if err := open(t, s.URL, withSecret).Revoke(t.Context(), secret.New(canary)); err != nil ||
		path != "/other" || authorization == "" {
		t.Errorf("as set: %v %s", err, path)
	}
}

// Who must know that a token stays good is told, and what to set.
func TestRevokeWithoutAnEndpointSaysSo(t *testing.T) {
	err := open(t, "http://127.0.0.1:1", nil).Revoke(t.Context(), secret.New(canary))
	if !errors.Is(err, grant.ErrNoRevocation) || !strings.Contains(err.Error(), "revoke_url") {
		t.Error(err)
	}
}

// RFC 7009 section 2.2: a token that is good no more is revoked.
func TestDeadTokenIsRevoked(t *testing.T) {
	for body, status := range map[string]int{
		"":                                     200,
		"ok":                                   200,
		`{"ok":true}`:                          200,
		`{"error":"invalid_grant"}`:            400,
		`{"error":"invalid_token"}`:            400,
		`{"error":"token_revoked","ok":false}`: 200,
	} {
		end := answering(t, status, nil, body)
		if err := open(t, end.URL, func(c *idp.Config) { c.RevokeURL = end.URL }).Revoke(
			t.Context(), secret.New(canary),
		); err != nil {
			t.Errorf("%d %s: %v", status, body, err)
		}
	}
}

func TestRevokeFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		class  grant.Class
		code   string
	}{
		"later": {503, "", grant.Throttled, ""}, // section 2.2.1: it still exists
		"down":  {500, "", grant.Ambiguous, ""},
		"not supported": {
			400, `{"error":"unsupported_token_type"}`, grant.Unknown, "unsupported_token_type",
		},
		"client":    {401, `{"error":"invalid_client"}`, grant.Config, "invalid_client"},
		"not there": {404, "", grant.Config, ""},
		"not ok":    {200, `{"ok":false,"error":"canary"}`, grant.Unknown, "canary"},
	} {
		end := answering(t, tt.status, map[string]string{"Retry-After": "3"}, tt.body)
		err := open(t, end.URL, func(c *idp.Config) { c.RevokeURL = end.URL }).Revoke(t.Context(),
			secret.New(canary))
		f, ok := errors.AsType[*grant.Fault](err)
		if !ok || f.Op != "revoke" || f.Class != tt.class || f.Code != tt.code ||
			(f.RetryAfter > 0) != (tt.status >= 500) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
