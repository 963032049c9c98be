package realidp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/publishers"
)

// hydraKind is Ory Hydra, where it is installed.
var hydraKind = kind{
	name: "hydra", preset: "hydra", start: startHydra,
	endpoints: map[string]string{"/oauth2/token": "token", "/userinfo": "userinfo"},
	wrongWay:  "post",
	title:     "hydra %s",
	version:   hydraVersion,
	verdicts: map[string]verdict{
		"refreshed, rotated": {"success", "", ""},
		"revoked": {
			"permanent", "revoked", "the same for a token that it never issued",
		},
		"spent": {
			"permanent", "revoked", "all tokens of the login are revoked by it",
		},
		"unknown":                 {"permanent", "revoked", ""},
		"no token":                {"permanent", "revoked", "renewd sends no such request"},
		"wrong secret or client":  {"config", "", "the token is not looked at"},
		"wrong secret, put right": {"success", "", ""},
		"wrong way": {
			"config",
			"",
			"client_secret_post, at a client that is registered for basic, Hydra's own default",
		},
		"no secret":         {"config", "", "client_auth: none, at a client that has one"},
		"unsupported grant": {"unknown", "", "renewd sends no such request"},
		"userinfo": {
			"success", "", "sub is whatever the consent app chose; iat and rat move",
		},
		"userinfo, bad token":       {"refused", "", ""},
		"userinfo, no token":        {"refused", "", ""},
		"userinfo, session revoked": {"refused", "", "access tokens end with their session"},
	},
}

// hydra is Ory Hydra as a separate process on PostgreSQL. Refresh tokens are for one use, and there
// is no grace window. It has no accounts: a login is whatever its login and consent apps say, and
// these tests act as those apps.
type hydra struct {
	http.Handler // handles requests to its public port
	public       string
	admin        string
	config       string
	process      atomic.Pointer[proc.Process]
	log          lines
}

// findHydra returns where the program is. It comes from Hydra's releases, or from `go build
// github.com/ory/hydra/v2`.
var findHydra = sync.OnceValues(func() (string, error) { return exec.LookPath("hydra") })

func startHydra(t *testing.T, issuer string) provider {
	t.Helper()
	if _, err := findHydra(); err != nil {
		t.Skip("hydra is not installed; its releases are at https://github.com/ory/hydra/releases")
	}
	db := startPostgres(t)
	h := &hydra{
		public: proc.FreeAddrFor(t),
		admin:  proc.FreeAddrFor(t),
		config: filepath.Join(t.TempDir(), "hydra.json"),
	}
	proxy := httputil.NewSingleHostReverseProxy(must(url.Parse("http://" + h.public))(t))
	proxy.ErrorLog = log.New(io.Discard, "", 0) // errors of clients that went away
	h.Handler = proxy
	h.configure(t, issuer, db.URL("postgres"))
	t.Cleanup(func() {
		h.kill()
		if t.Failed() {
			t.Logf("hydra said at last:\n%s", &h.log)
		}
	})
	migrate := exec.CommandContext(t.Context(), must(findHydra())(t), "migrate", "sql", "up",
		"--yes", "--config", h.config, "--read-from-env")
	migrate.Env = append(os.Environ(), "DSN="+db.URL("postgres"))
	if out, err := migrate.CombinedOutput(); err != nil {
		t.Fatalf("hydra migrate: %v\n%s", err, out)
	}
	client := map[string]any{
		"client_id":                  clientID,
		"client_secret":              clientSecret,
		"grant_types":                []string{"authorization_code", "refresh_token"},
		"response_types":             []string{"code"},
		"redirect_uris":              []string{callback},
		"scope":                      "openid offline_access",
		"token_endpoint_auth_method": "client_secret_basic",
	}
	err := errors.Join(h.restart(t.Context()),
		h.manage(t.Context(), http.MethodPost, "/admin/clients", client, nil))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *hydra) configure(t *testing.T, issuer, dsn string) {
	t.Helper()
	listen := func(addr string) map[string]any {
		host, port, _ := net.SplitHostPort(addr)
		return map[string]any{"host": host, "port": json.Number(port)}
	}
	text, err := json.Marshal(map[string]any{
		"dsn": dsn, "log": map[string]any{"level": "error"},
		"serve": map[string]any{"public": listen(h.public), "admin": listen(h.admin)},
		"urls": map[string]any{
			"self":    map[string]any{"issuer": issuer},
			"login":   issuer + "/sign-in",
			"consent": issuer + "/consent",
		},
		"secrets": map[string]any{"system": []string{"a-made-up-secret-of-the-system"}},
		"ttl":     map[string]any{"access_token": fmt.Sprint(lifetime, "s")},
		"oauth2": map[string]any{
			"hashers": map[string]any{"algorithm": "bcrypt", "bcrypt": map[string]any{"cost": 4}},
		},
	})
	if err == nil {
		err = os.WriteFile(h.config, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (h *hydra) kill() {
	if p := h.process.Swap(nil); p != nil {
		p.Kill()
	}
}

// restart kills the process and starts it again.
func (h *hydra) restart(ctx context.Context) error {
	h.kill()
	program, err := findHydra()
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "serve", "all", "--dev", "--config", h.config)
	cmd.Stdout, cmd.Stderr = &h.log, &h.log
	p, err := proc.Start(cmd)
	if err != nil {
		return err
	}
	h.process.Store(p)
	return answers(ctx, "http://"+h.public+"/health/ready")
}

// enroll has nothing to do: Hydra has no accounts.
func (h *hydra) enroll(context.Context, string) error { return nil }

// signIn signs in as a person does, who begins again if a sign-in fails. Each page may be opened
// only once. A request that is sent twice, on a connection that has just ended, ends such a
// sign-in.
func (h *hydra) signIn(
	ctx context.Context, name string,
) (user string, pair publishers.Tokens, err error) {
	for range 3 {
		if user, pair, err = h.walkThrough(ctx, name); err == nil {
			break
		}
	}
	return user, pair, err
}

// walkThrough goes from page to page as a browser does, and agrees where the apps would.
func (h *hydra) walkThrough(ctx context.Context, name string) (string, publishers.Tokens, error) {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return "", publishers.Tokens{}, err
	}
	browser := &http.Client{
		Jar: jar,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	user := name + "@example.com"
	next := "/oauth2/auth?" + url.Values{
		"client_id":     {clientID},
		"redirect_uri":  {callback},
		"response_type": {"code"},
		"scope":         {"openid offline_access"},
		"state":         {"made-up-state"},
	}.Encode()
	for range 10 {
		at, err := h.redirect(ctx, browser, next)
		if err != nil {
			return "", publishers.Tokens{}, err
		}
		ask := at.Query()
		var to struct {
			Next string `json:"redirect_to"`
		}
		switch {
		case ask.Has("code"):
			pair, err := h.exchange(ctx, ask.Get("code"))
			return user, pair, err
		case ask.Has("login_challenge"):
			err = h.manage(ctx, http.MethodPut,
				"/admin/oauth2/auth/requests/login/accept?login_challenge="+
					ask.Get("login_challenge"),
				map[string]any{"subject": user}, &to)
		case ask.Has("consent_challenge"):
			says := map[string]any{"name": name, "email": user, "groups": []string{"team-a"}}
			err = h.manage(ctx, http.MethodPut,
				"/admin/oauth2/auth/requests/consent/accept?consent_challenge="+
					ask.Get("consent_challenge"),
				map[string]any{
					"grant_scope": []string{"openid", "offline_access"},
					"session":     map[string]any{"id_token": says},
				}, &to)
		default:
			return "", publishers.Tokens{}, fmt.Errorf("sign in %s: sent to %s",
				name, at.Redacted())
		}
		if err != nil {
			return "", publishers.Tokens{}, err
		}
		page, err := url.Parse(to.Next)
		if err != nil {
			return "", publishers.Tokens{}, err
		}
		next = page.RequestURI()
	}
	return "", publishers.Tokens{}, fmt.Errorf("sign in %s: too many pages", name)
}

// redirect returns where a page sends the browser.
func (h *hydra) redirect(ctx context.Context, browser *http.Client, page string) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.public+page, nil)
	if err != nil {
		return nil, err
	}
	res, err := browser.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	to, err := res.Location()
	if err != nil {
		return nil, fmt.Errorf("%s: status %d: %w", page, res.StatusCode, err)
	}
	return to, nil
}

func (h *hydra) exchange(ctx context.Context, code string) (publishers.Tokens, error) {
	form := url.Values{
		"grant_type":   {"authorization_code"},
		"code":         {code},
		"redirect_uri": {callback},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+h.public+"/oauth2/token",
		strings.NewReader(form.Encode()))
	if err != nil {
		return publishers.Tokens{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(clientID, clientSecret)
	var pair struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		IDToken      string `json:"id_token"`
		ExpiresIn    int    `json:"expires_in"`
	}
	err = said(http.DefaultClient, req, &pair)
	return publishers.Tokens{
		AccessToken:  pair.AccessToken,
		RefreshToken: pair.RefreshToken,
		IDToken:      pair.IDToken,
		ExpiresIn:    time.Duration(pair.ExpiresIn) * time.Second,
	}, err
}

// revoke takes the user's consent back, which ends every session that came of that consent.
func (h *hydra) revoke(ctx context.Context, name string) error {
	consents := url.Values{"subject": {name + "@example.com"}, "all": {"true"}}
	return h.manage(ctx, http.MethodDelete,
		"/admin/oauth2/auth/sessions/consent?"+consents.Encode(), nil, nil)
}

// remove revokes the consent, as a login app does that deletes an account. Hydra has no accounts.
func (h *hydra) remove(ctx context.Context, name string) error { return h.revoke(ctx, name) }

func (h *hydra) manage(ctx context.Context, method, path string, body, into any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+h.admin+path,
		bytes.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	return said(http.DefaultClient, req, into)
}

func hydraVersion(t *testing.T) string {
	t.Helper()
	out := must(exec.CommandContext(t.Context(), "go", "version", "-m",
		must(findHydra())(t)).Output())(t)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 2 && (f[0] == "dep" || f[0] == "mod") && f[1] == "github.com/ory/hydra/v2" {
			return f[2]
		}
	}
	t.Fatalf("hydra does not say its version:\n%s", out)
	return ""
}
