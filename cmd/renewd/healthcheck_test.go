package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/daemon"
)

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdef"
	var env []string
	check := func(found string, status int) (int, string) {
		t.Helper()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" || r.Header.Get("Authorization") != "Bearer "+token {
				t.Errorf("asked %s with %q", r.URL.Path, r.Header.Get("Authorization"))
			}
			daemon.Reply(w, status, daemon.Readiness{Checks: map[string]string{"store": found}})
		}))
		defer server.Close()
		addr := server.Listener.Addr().(*net.TCPAddr)
		env = []string{
			"RENEWD_HTTP_ADDR=0.0.0.0:" + strings.TrimPrefix(addr.String(), "127.0.0.1:"),
			"RENEWD_HTTP_TOKEN=" + token,
			"RENEWD_ALLOW_PLAINTEXT=true",
		}
		code, out, _ := runIn(t, env, "healthcheck")
		return code, out
	}
	code, out := check("no answer", http.StatusServiceUnavailable)
	if code != exitFailed || !strings.Contains(out, "store: no answer") {
		t.Errorf("unready: got %d, %q", code, out)
	}
	code, out = check("ok", http.StatusOK)
	if code != exitDone || !strings.Contains(out, "store: ok") {
		t.Errorf("ready: got %d, %q", code, out)
	}
	if code, _, errs := runIn(t, env, "healthcheck"); code != exitFailed ||
		!strings.Contains(errs, "RENEWD_HTTP_ADDR") {
		t.Errorf("nobody there: got %d, %q", code, errs)
	}
}
