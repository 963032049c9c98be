package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit"
)

// caller speaks to a running renewd over HTTP, as a service with a secret.
type caller struct {
	base, secret string
}

// addClient has the built binary make a client of a running renewd.
func addClient(t *testing.T, environ []string, name, may string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := command(t, environ, "clients", "add", name, "--may", may, "-o", "json")
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("clients add: %v: %s", err, out.String())
	}
	var made struct{ Secret string }
	if err := json.Unmarshal(out.Bytes(), &made); err != nil || made.Secret == "" {
		t.Fatalf("clients add printed %s: %v", out.String(), err)
	}
	return made.Secret
}

func (c caller) do(
	t *testing.T,
	method, path, body string,
	header ...string,
) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, c.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.secret)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	raw, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(raw)
}

// An app in PHP, Python or Node signs a user in over HTTP, calls an API with fresh tokens, and
// hears when the session has ended. The test uses the built binary, PostgreSQL, a provider that is
// not ours, and the programs of docs/examples as they are.
func TestAppsReadFreshTokens(t *testing.T) {
	for _, program := range []string{"php", "python3", "node"} {
		testkit.Program(t, program)
	}
	idp := startProvider(t, 30*time.Second)
	db := startPostgres(t)
	d := serve(t, settingsFor(idp), "RENEWD_DATABASE_URL="+db.URL("postgres"),
		"RENEWD_TOKEN_AUDIT=true")
	c := caller{
		"http://" + d.http,
		addClient(
			t,
			[]string{"RENEWD_NATS_URL=nats://" + d.nats},
			"shop",
			"login,logout,refresh,read,token,admin",
		),
	}
	const user = "user|jane@example.com"
	path := "/v1/users/" + idpName + "/" + url.PathEscape(user)

	if status, text := c.do(t, "GET", path+"/token", ""); status != 404 ||
		!strings.Contains(text, "unknown_user") {
		t.Errorf("before the login: %d %s", status, text)
	}
	signIn := func(user string) {
		t.Helper()
		tk := must(idp.mint(t.Context(), user))(t)
		login := must(
			json.Marshal(map[string]any{"provider": idpName, "user": user, "tokens": map[string]any{
				"access_token":  tk.AccessToken,
				"refresh_token": tk.RefreshToken,
				"expires_in":    tk.ExpiresIn,
			}}),
		)(
			t,
		)
		status, text := c.do(t, "POST", "/v1/logins", string(login), "Prefer", "wait=30")
		if status != 200 || !strings.Contains(text, "user.synced") ||
			!strings.Contains(text, `"source":"/clients/shop"`) {
			t.Fatalf("login: %d %s", status, text)
		}
	}
	signIn(user)
	if status, text := c.do(t, "GET", path, ""); status != 200 ||
		!strings.Contains(text, `"live"`) ||
		strings.Contains(text, "token\"") {
		t.Errorf("state: %d %s", status, text)
	}

	programs := map[string][]string{
		"PHP":     {"php", "fresh-token.php", idpName, user},
		"Laravel": {"php", "middleware.php", idpName, user},
		"Python":  {"python3", "fresh_token.py", idpName, user},
		"Node":    {"node", "fresh-token.mjs", idpName, user},
	}
	run := func(t *testing.T, args []string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = root + "/docs/examples/fresh-token"
		cmd.Env = append(
			os.Environ(),
			"TOKENS_URL="+c.base,
			"TOKENS_SECRET="+c.secret,
			"API_URL="+idp.Issuer+"/me",
			"PYTHONDONTWRITEBYTECODE=1",
		)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for name, args := range programs {
		t.Run(name, func(t *testing.T) {
			out, code := run(t, args)
			if code != 0 || name != "Laravel" && !strings.Contains(out, "jane@example.com") ||
				name == "Laravel" && !strings.Contains(out, "200 with a token") {
				t.Errorf("exit code %d: %s", code, out)
			}
		})
	}

	listener := exec.CommandContext(
		t.Context(),
		"node",
		"fresh-token.mjs",
		idpName,
		user,
		"--listen",
	)
	listener.Dir = root + "/docs/examples/fresh-token"
	listener.Env = append(
		os.Environ(),
		"TOKENS_URL="+c.base,
		"TOKENS_SECRET="+c.secret,
		"API_URL="+idp.Issuer+"/me",
	)
	var heard bytes.Buffer
	listener.Stdout, listener.Stderr = &heard, &heard
	if err := listener.Start(); err != nil {
		t.Fatal(err)
	}
	if err := idp.end(t.Context(), user); err != nil {
		t.Fatal(err)
	}
	if status, text := c.do(t, "POST", path+"/refresh", `{"want":"tokens"}`); status != 202 {
		t.Errorf("refresh: %d %s", status, text)
	}
	// While another user is renewed, the refusals count as this user's and not as the settings'.
	const other = "user|june@example.com"
	signIn(other)
	eventually(t, time.Minute, func() error {
		c.do(
			t,
			"POST",
			"/v1/users/"+idpName+"/"+url.PathEscape(other)+"/refresh",
			`{"want":"tokens"}`,
			"Prefer",
			"wait=10",
		)
		if status, text := c.do(t, "GET", path+"/token", ""); status != 409 ||
			!strings.Contains(text, `"sign_in_again"`) {
			return fmt.Errorf("the session has ended: %d %s", status, text)
		}
		return nil
	})
	if err := listener.Wait(); err != nil ||
		!strings.Contains(heard.String(), "sign in again: revoked") {
		t.Errorf("the listener: %v: %s", err, heard.String())
	}
	for name, args := range programs {
		t.Run(name+" after the end", func(t *testing.T) {
			out, code := run(t, args)
			if name == "Laravel" &&
				!strings.Contains(out, "302 /login (revoked)\nsigned out here too") ||
				name != "Laravel" &&
					(code != 3 || !strings.Contains(out, "sign in again: revoked")) {
				t.Errorf("exit code %d: %s", code, out)
			}
		})
	}

	// Who read which version is on record, once for each, without the token.
	read := "/v1/outcomes?type=token.read&provider=" + idpName + "&user=" + url.QueryEscape(user)
	eventually(t, time.Minute, func() error {
		status, text := c.do(t, "GET", read, "", "Accept", "application/x-ndjson")
		once := map[string]bool{}
		for line := range strings.Lines(text) {
			_, data, _ := strings.Cut(line, `"data":`)
			if once[data] || strings.Contains(data, "token\"") ||
				!strings.Contains(data, `{"reader":"shop","door":"http","version":`) {
				t.Errorf("on record: %s", line)
			}
			once[data] = true
		}
		if status != 200 || len(once) == 0 {
			return fmt.Errorf("no read is on record: %d %s", status, text)
		}
		return nil
	})

	// A login brings the user back, a logout ends the session on request, an erasure leaves
	// nothing.
	signIn(user)
	if status, text := c.do(t, "GET", path+"/token", ""); status != 200 {
		t.Errorf("back again: %d %s", status, text)
	}
	// Between the two a suspension keeps the session, and hands nothing out.
	status, text := c.do(t, "POST", path+"/suspend", `{"reason":"odd"}`, "Prefer", "wait=30")
	if status != 200 || !strings.Contains(text, "user.suspended") {
		t.Errorf("suspend: %d %s", status, text)
	}
	if status, text := c.do(t, "GET", path+"/token", ""); status != 409 ||
		!strings.Contains(text, `"/v1/problems/suspended"`) {
		t.Errorf("suspended: %d %s", status, text)
	}
	if status, text := c.do(t, "GET", path, ""); status != 200 ||
		!strings.Contains(text, `"status":"suspended","reason":"suspended"`) {
		t.Errorf("suspended: %d %s", status, text)
	}
	if status, text := c.do(t, "POST", path+"/resume", "", "Prefer", "wait=30"); status != 200 ||
		!strings.Contains(text, "user.synced") {
		t.Errorf("resume: %d %s", status, text)
	}
	if status, text := c.do(t, "GET", path+"/token", ""); status != 200 {
		t.Errorf("resumed: %d %s", status, text)
	}
	status, text = c.do(t, "POST", path+"/logout", `{"reason":"left"}`, "Prefer", "wait=30")
	if status != 200 || !strings.Contains(text, "user.signed_out") {
		t.Errorf("logout: %d %s", status, text)
	}
	if status, text := c.do(t, "GET", path+"/token", ""); status != 409 ||
		!strings.Contains(text, `"signed_out"`) {
		t.Errorf("signed out: %d %s", status, text)
	}
	if status, text := c.do(t, "DELETE", path, ""); status != 204 {
		t.Errorf("erase: %d %s", status, text)
	}
	if status, text := c.do(t, "GET", path, ""); status != 404 {
		t.Errorf("erased: %d %s", status, text)
	}
	if _, text := c.do(t, "GET", read, "", "Accept", "application/x-ndjson"); text != "" {
		t.Errorf("erased, and still on record: %s", text)
	}

	// A client that was removed is refused within moments.
	remove := command(t, []string{"RENEWD_NATS_URL=nats://" + d.nats}, "clients", "remove", "shop")
	if err := remove.Run(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error {
		if status, _ := c.do(t, "GET", path, ""); status != 401 {
			return fmt.Errorf("a client that was removed is answered %d", status)
		}
		return nil
	})
}
