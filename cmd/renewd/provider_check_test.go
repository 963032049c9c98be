package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/renewd/renewd/internal/admin"
)

// checked is what `provider check -o json` says.
type checked struct {
	Findings    []admin.Finding
	Suggestions []admin.Suggestion
}

func (c checked) found(check string) admin.Finding {
	for _, f := range c.Findings {
		if f.Check == check {
			return f
		}
	}
	return admin.Finding{}
}

func (c checked) suggests(setting string) string {
	for _, s := range c.Suggestions {
		if s.Setting == setting {
			return s.Value
		}
	}
	return ""
}

func check(t *testing.T, env []string, code int, args ...string) (c checked) {
	t.Helper()
	got, out, errs := runIn(t, env, append([]string{"provider", "check", "-o", "json"}, args...)...)
	if got != code {
		t.Fatalf("got %d: %s%s", got, out, errs)
	}
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return c
}

// A provider that all goes well with: the stand-in, which is PropelAuth's double.
func TestProviderCheckOfAnOrdinaryProvider(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	env := []string{
		"RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	tokens := write(t, "tokens.json", standIn.login(t, "jane@example.com"))
	before, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	c := check(t, env, exitDone, "--tokens-file", tokens)
	f := c.found("a dead token")
	if f.State != admin.Fine || !strings.Contains(f.Found, "invalid_grant") {
		t.Errorf("%+v", f)
	}
	f = c.found("userinfo")
	if f.State != admin.Fine || !strings.Contains(f.Found, "jane@example.com") {
		t.Errorf("%+v", f)
	}
	if after, _ := os.ReadFile(tokens); string(after) != string(before) {
		t.Error("without --refresh the tokens are another pair")
	}
	c = check(t, env, exitDone, "--tokens-file", tokens, "--refresh")
	f = c.found("refresh")
	if f.State != admin.Fine || !strings.Contains(f.Found, "replaces the refresh token") {
		t.Errorf("%+v", f)
	}
	// The file has the pair that is good now.
	check(t, env, exitDone, "--tokens-file", tokens, "--refresh")
	if info, err := os.Stat(tokens); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	text := want(t, env, exitDone, "made-up", "provider", "check")
	i, j := strings.Index(text, "now a made-up"), strings.Index(text, "a dead token")
	if i < 0 || j < i {
		t.Errorf("it is not told before it is sent:\n%s", text)
	}
	if strings.Contains(text, devClient+":") {
		t.Errorf("a credential is printed:\n%s", text)
	}
	text = want(t, env, exitDone, "endpoints", "provider", "check", "--no-made-up")
	if strings.Contains(text, "a dead token") {
		t.Errorf("%s", text)
	}
	standIn.end(t, "jane@example.com")
	c = check(t, env, exitFailed, "--tokens-file", tokens, "--refresh")
	if c.found("refresh").State != admin.Broken {
		t.Errorf("%+v", c.Findings)
	}
	want(t, env, exitUsage, "--refresh", "provider", "check", "--refresh")
}

// oddProvider differs from the usual in everything. It takes post alone, refuses in words that no
// table has, and its userinfo is the access token's claims, with a counter and roles somewhere
// below.
func oddProvider(t *testing.T) string {
	var visits atomic.Int64
	mux := http.NewServeMux()
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	const document = "/.well-known/openid-configuration"
	mux.HandleFunc(document, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"authorization_endpoint":"%[1]s/a",`+
			`"token_endpoint":"%[1]s/token","userinfo_endpoint":"%[1]s/me","jwks_uri":"%[1]s/k"}`,
			s.URL)
	})
	answer := func(w http.ResponseWriter, status int, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.PostFormValue("client_secret") != "s3cret":
			answer(w, 401, `{"error":"invalid_client"}`)
		case r.PostFormValue("refresh_token") != "r1":
			answer(w, 400, `{"error":"session_closed","error_description":`+
				`"The session was closed by staff at noon, call 17."}`)
		default:
			answer(w, 200, `{"access_token":"a2"}`)
		}
	})
	mux.HandleFunc("/me", func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "Bearer a1" && a != "Bearer a2" {
			answer(w, 403, `{"error":"no"}`)
			return
		}
		answer(w, 200, fmt.Sprintf(`{"sub":"u1","iat":%d,"visits":%[1]d,`+
			`"resource_access":{"app":{"roles":["admin"]}}}`, visits.Add(1)))
	})
	return s.URL
}

// What it suggests makes the odd provider an ordinary one.
func TestProviderCheckSuggestsWhatSuits(t *testing.T) {
	t.Parallel()
	file := func(more string) []string {
		return []string{"RENEWD_CONFIG=" + write(t, "renewd.yaml", fmt.Sprintf(
			"providers:\n  - id: odd\n    preset: oidc\n    auth_url: %s\n"+
				"    client_id: app\n    client_secret: s3cret\n    allow_http_loopback: true\n%s",
			oddProvider(t), more))}
	}
	tokens := func() string {
		return write(t, "tokens.json", `{"access_token":"a1","refresh_token":"r1"}`)
	}
	c := check(t, file(""), exitDone, "--tokens-file", tokens(), "--refresh")
	for setting, want := range map[string]string{
		"client_auth": "post",
		"volatile":    "[visits]",
		"profile":     `{roles: "/resource_access/app/roles"}`,
		"rules": `[{status: 400, code: "session_closed", ` +
			`body: "The session was closed by staff", class: permanent, reason: revoked}]`,
	} {
		if got := c.suggests(setting); got != want {
			t.Errorf("%s: suggests %s, want %s", setting, got, want)
		}
	}
	if f := c.found("lifetime"); f.State != admin.Warning {
		t.Errorf("%+v", f)
	}
	c = check(t, file(`    client_auth: post
    volatile: [visits]
    profile: {roles: /resource_access/app/roles}
    rules:
      - {status: 400, code: session_closed, body: "The session was closed by staff",
         class: permanent, reason: revoked}
      - {on: userinfo, status: 403, code: "no", class: refused}
`), exitDone, "--tokens-file", tokens(), "--refresh")
	if len(c.Suggestions) != 0 || c.found("a dead token").State != admin.Fine ||
		c.found("a dead access token").State != admin.Fine {
		t.Errorf("%+v", c)
	}
	wrong := file("    client_auth: basic\n")
	if c := check(t, wrong, exitFailed); c.found("a dead token").State != admin.Broken {
		t.Errorf("%+v", c.Findings)
	}
	if _, out, _ := runIn(t, wrong, "provider", "check"); strings.Contains(out, "s3cret") {
		t.Errorf("the secret is printed: %s", out)
	}
	nowhere := []string{
		"RENEWD_AUTH_URL=http://127.0.0.1:1",
		"RENEWD_CLIENT_ID=c",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_PROVIDER_PRESET=oidc",
	}
	want(t, nowhere, exitFailed, "is auth_url the issuer", "provider", "check")
}
