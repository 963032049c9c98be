package realidp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cookiejar"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/publishers"
)

// glewlwydKind is Glewlwyd as Debian ships it.
var glewlwydKind = kind{
	name: "glewlwyd", preset: "oidc", start: startGlewlwyd, path: glewlwydPath,
	// It has no word for a session that has ended.
	policy: "      retry_later: 6s\n      confirm_unknown: 6s\n",
	auth:   "basic", wrongWay: "post", spends: true,
	endpoints: map[string]string{"/api/oidc/token": "token", "/api/oidc/userinfo": "userinfo"},
	title:     "glewlwyd %s",
	version:   glewlwydVersion,
	verdicts: map[string]verdict{
		"refreshed, rotated": {"success", "", "one-time use is on; there is no id_token"},
		"revoked": {
			"unknown", "", "no body: the same for a dead token, a deleted user and a wrong secret",
		},
		"spent":                   {"unknown", "", ""},
		"unknown":                 {"unknown", "", ""},
		"no token":                {"unknown", "", ""},
		"user deleted":            {"unknown", "", ""},
		"wrong secret or client":  {"unknown", "", ""},
		"wrong secret, put right": {"unknown", "", "the token was spent by the wrong secret"},
		"wrong way": {
			"unknown", "", "client_secret_post, at a client that is registered for basic",
		},
		"no secret":                 {"unknown", "", ""},
		"unsupported grant":         {"unknown", "", ""},
		"userinfo":                  {"success", "", "sub is random for each client"},
		"userinfo, bad token":       {"refused", "", ""},
		"userinfo, no token":        {"refused", "", ""},
		"userinfo, session revoked": {"success", "", "an access token is good until it expires"},
	},
}

// glewlwyd is Glewlwyd as a separate process on SQLite, as its package sets it up. Refresh tokens
// are for one use, without a grace window. If it is asked for several things at a time, it
// sometimes breaks a session, and from then on answers that session with an empty 200. On
// PostgreSQL that happens more often.
type glewlwyd struct {
	http.Handler // handles requests to its port
	addr         string
	config       string
	process      atomic.Pointer[proc.Process]
	log          lines
	admin        *http.Client // with the administrator's session
}

const (
	glewlwydSQL     = "/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3"
	glewlwydPath    = "/api/oidc"
	glewlwydModules = "/usr/lib/glewlwyd/"
)

func startGlewlwyd(t *testing.T, issuer string) provider {
	t.Helper()
	if _, err := exec.LookPath("glewlwyd"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("glewlwyd is not installed; on Debian: apt-get install glewlwyd: %v", err)
		}
		t.Skip("glewlwyd is not installed; on Debian: apt-get install glewlwyd")
	}
	dir := t.TempDir()
	database := filepath.Join(dir, "glewlwyd.db")
	sqlite := exec.CommandContext(t.Context(), "sqlite3", "-bail", database)
	sqlite.Stdin = bytes.NewReader(must(os.ReadFile(glewlwydSQL))(t))
	if out, err := sqlite.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", glewlwydSQL, err, out)
	}
	g := &glewlwyd{addr: proc.FreeAddrFor(t), config: filepath.Join(dir, "glewlwyd.conf")}
	proxy := httputil.NewSingleHostReverseProxy(must(url.Parse("http://" + g.addr))(t))
	proxy.ErrorLog = log.New(io.Discard, "", 0) // errors of clients that went away
	g.Handler = proxy
	g.configure(t, issuer, database)
	t.Cleanup(func() {
		g.kill()
		if t.Failed() {
			t.Logf("glewlwyd said at last:\n%s", &g.log)
		}
	})
	if err := errors.Join(g.restart(t.Context()), g.setUp(t.Context(), issuer)); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *glewlwyd) configure(t *testing.T, issuer, database string) {
	t.Helper()
	host, port, _ := strings.Cut(g.addr, ":")
	text := fmt.Sprintf(`port=%s
bind_address="%s"
external_url="%s"
login_url="login.html"
api_prefix="api"
log_mode="console"
log_level="ERROR"
cookie_secure=0
session_key="GLEWLWYD2_SESSION_ID"
session_expiration=86400
admin_scope="g_admin"
profile_scope="g_profile"
user_module_path="%[4]suser"
client_module_path="%[4]sclient"
user_auth_scheme_module_path="%[4]sscheme"
plugin_module_path="%[4]splugin"
hash_algorithm="SHA512"
database={ type="sqlite3"; path="%[5]s"; };
`, port, host, strings.TrimSuffix(issuer, glewlwydPath), glewlwydModules, database)
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *glewlwyd) kill() {
	if p := g.process.Swap(nil); p != nil {
		p.Kill()
	}
}

// restart kills the process and starts it again.
func (g *glewlwyd) restart(ctx context.Context) error {
	g.kill()
	cmd := exec.Command("glewlwyd", "--config-file="+g.config)
	cmd.Stdout, cmd.Stderr = &g.log, &g.log
	p, err := proc.Start(cmd)
	if err != nil {
		return err
	}
	g.process.Store(p)
	return answers(ctx, "http://"+g.addr+"/config")
}

// setUp signs the administrator in and makes the provider, its scope and the client.
func (g *glewlwyd) setUp(ctx context.Context, issuer string) error {
	var err error
	if g.admin, err = g.session(ctx, "admin", "password"); err != nil {
		return err
	}
	return errors.Join(
		g.ask(ctx, g.admin, http.MethodPost, "/api/mod/plugin", map[string]any{
			"module": "oidc", "name": "oidc", "display_name": "oidc", "parameters": map[string]any{
				"iss":                        issuer,
				"jwt-type":                   "sha",
				"jwt-key-size":               "256",
				"key":                        "a-made-up-key-of-more-than-32-bytes",
				"access-token-duration":      lifetime,
				"refresh-token-duration":     86400,
				"code-duration":              600,
				"refresh-token-rolling":      true,
				"refresh-token-one-use":      "always",
				"allow-non-oidc":             true,
				"auth-type-password-enabled": true,
				"auth-type-refresh-enabled":  true,
				"subject-type":               "public",
				"name-claim":                 "mandatory",
				"email-claim":                "mandatory",
				"allowed-scope":              []string{"openid"},
				"claims":                     []any{},
				"auth-type-code-enabled":     true,
				"auth-type-token-enabled":    false,
				"auth-type-implicit-enabled": false,
				"auth-type-none-enabled":     false,
				"auth-type-client-enabled":   false,
				"auth-type-device-enabled":   false,
				"pkce-allowed":               false,
			},
		}, nil),
		g.ask(ctx, g.admin, http.MethodPost, "/api/client", map[string]any{
			"client_id":                  clientID,
			"client_secret":              clientSecret,
			"name":                       clientID,
			"confidential":               true,
			"enabled":                    true,
			"authorization_type":         []string{"code", "password", "refresh_token"},
			"redirect_uri":               []string{callback},
			"scope":                      []string{},
			"token_endpoint_auth_method": []string{"client_secret_basic"},
		}, nil),
	)
}

func (g *glewlwyd) enroll(ctx context.Context, name string) error {
	if g.ask(ctx, g.admin, http.MethodGet, "/api/user/"+name, nil, nil) == nil {
		return nil
	}
	return g.ask(ctx, g.admin, http.MethodPost, "/api/user", map[string]any{
		"username": name,
		"password": password,
		"name":     name,
		"email":    name + "@example.com",
		"enabled":  true,
		"scope":    []string{"openid", "g_profile"},
	}, nil)
}

func (g *glewlwyd) signIn(ctx context.Context, name string) (string, publishers.Tokens, error) {
	var user struct {
		Sub string `json:"sub"`
	}
	var pair struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int    `json:"expires_in"`
	}
	form := url.Values{
		"grant_type": {"password"},
		"username":   {name},
		"password":   {password},
		"scope":      {"openid"},
	}
	as := &http.Client{
		Transport: header{
			"Authorization",
			"Basic " + base64.StdEncoding.EncodeToString([]byte(clientID+":"+clientSecret)),
		},
	}
	if err := g.ask(ctx, as, http.MethodPost, glewlwydPath+"/token", form, &pair); err != nil {
		return "", publishers.Tokens{}, err
	}
	as = &http.Client{Transport: header{"Authorization", "Bearer " + pair.AccessToken}}
	err := g.ask(ctx, as, http.MethodGet, glewlwydPath+"/userinfo", nil, &user)
	return user.Sub, publishers.Tokens{
		AccessToken:  pair.AccessToken,
		RefreshToken: pair.RefreshToken,
		ExpiresIn:    time.Duration(pair.ExpiresIn) * time.Second,
	}, err
}

// revoke ends the sessions as the user does on the profile page.
func (g *glewlwyd) revoke(ctx context.Context, name string) error {
	c, err := g.session(ctx, name, password)
	if err != nil {
		return err
	}
	var tokens []struct {
		Hash    string `json:"token_hash"`
		Enabled bool   `json:"enabled"`
	}
	err = g.ask(ctx, c, http.MethodGet, glewlwydPath+"/token?limit=1000", nil, &tokens)
	if err != nil {
		return err
	}
	for _, token := range tokens {
		if !token.Enabled {
			continue
		}
		err := g.ask(ctx, c, http.MethodDelete, glewlwydPath+"/token/"+url.PathEscape(token.Hash),
			nil, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *glewlwyd) remove(ctx context.Context, name string) error {
	return g.ask(ctx, g.admin, http.MethodDelete, "/api/user/"+name, nil, nil)
}

// session signs a user in on the login page.
func (g *glewlwyd) session(ctx context.Context, user, password string) (*http.Client, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return nil, err
	}
	c := &http.Client{Jar: jar}
	return c, g.ask(ctx, c, http.MethodPost, "/api/auth",
		map[string]any{"username": user, "password": password}, nil)
}

// ask sends a form or JSON to the server itself, and decodes what comes back.
func (g *glewlwyd) ask(
	ctx context.Context, c *http.Client, method, path string, body, into any,
) error {
	text, kind := []byte(nil), "application/json"
	if form, ok := body.(url.Values); ok {
		text, kind = []byte(form.Encode()), "application/x-www-form-urlencoded"
	} else if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+g.addr+path,
		bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	return said(c, req, into)
}

// header adds one header to every request.
type header struct{ name, value string }

func (h header) RoundTrip(r *http.Request) (*http.Response, error) {
	r.Header.Set(h.name, h.value)
	return http.DefaultTransport.RoundTrip(r)
}

// glewlwydVersion is the version that Debian has installed.
func glewlwydVersion(t *testing.T) string {
	t.Helper()
	return string(must(exec.CommandContext(t.Context(), "dpkg-query", "--showformat=${Version}",
		"--show", "glewlwyd").Output())(t))
}
