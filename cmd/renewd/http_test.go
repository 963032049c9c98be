package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/renewd/renewd/internal/grant"
)

func testSurface() surface {
	return surface{
		metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
		probes:  func() []probe { return nil },
		jwks:    func() []byte { return []byte(`{"keys":[]}`) },
		schemas: fstest.MapFS{"user.synced.json": {Data: []byte(`{}`)}},
		logger:  slog.New(slog.DiscardHandler),
	}
}

func get(t *testing.T, h http.Handler, path, token string) (int, string) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, path, nil)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

func TestHTTPGuard(t *testing.T) {
	t.Parallel()
	guarded := []string{"/metrics", "/.well-known/jwks.json", "/schemas/user.synced.json"}
	const token = "0123456789abcdef"
	for name, c := range map[string]struct {
		open  bool
		set   string
		given string
		want  int
	}{
		"loopback, no token":           {true, "", "", 200},
		"loopback, token, none given":  {true, token, "", 401},
		"loopback, token, wrong given": {true, token, token + "x", 401},
		"loopback, token, given":       {true, token, token, 200},
		"beyond, no token":             {false, "", "", 403},
		"beyond, no token, some given": {false, "", token, 403},
		"beyond, token":                {false, token, token, 200},
		"beyond, token, none given":    {false, token, "", 401},
	} {
		s := testSurface()
		s.open, s.token = c.open, grant.NewSecret(c.set)
		for _, path := range guarded {
			if code, _ := get(t, s.handler(), path, c.given); code != c.want {
				t.Errorf("%s: %s: got %d, want %d", name, path, code, c.want)
			}
		}
		for _, path := range []string{"/livez", "/readyz"} {
			if code, _ := get(t, s.handler(), path, ""); code != 200 {
				t.Errorf("%s: %s: got %d, want 200", name, path, code)
			}
		}
	}
}

func TestHTTPReadyNamesWhatIsNot(t *testing.T) {
	t.Parallel()
	s := testSurface()
	s.probes = func() []probe {
		return []probe{
			{"nats", func(context.Context) error { return nil }},
			{"store", func(context.Context) error { return errors.New("no answer from db:5432") }},
		}
	}
	code, body := get(t, s.handler(), "/readyz", "")
	var got readiness
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if code != 503 || got.Status != "unready" || got.Checks["nats"] != "ok" || got.Checks["store"] != "no answer from db:5432" {
		t.Errorf("got %d %+v", code, got)
	}
	if code, _ := get(t, s.handler(), "/nothing", ""); code != 404 {
		t.Errorf("got %d, want 404", code)
	}
}

func TestHTTPServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- serveHTTP(ctx, l, testSurface().handler(), slog.New(slog.DiscardHandler)) }()
	res, err := http.Get("http://" + l.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if _, err := listen(ctx, l.Addr().String()); err == nil || !strings.Contains(err.Error(), "RENEWD_HTTP_ADDR") {
		t.Errorf("a port in use: got %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	s := testSurface()
	ready := errors.New("no answer")
	s.probes = func() []probe { return []probe{{"store", func(context.Context) error { return ready }}} }
	server := httptest.NewServer(s.handler())
	defer server.Close()
	addr := server.Listener.Addr().(*net.TCPAddr)
	env := []string{"RENEWD_HTTP_ADDR=0.0.0.0:" + strings.TrimPrefix(addr.String(), "127.0.0.1:")}
	code, out, _ := runIn(t, env, "healthcheck")
	if code != exitFailed || !strings.Contains(out, "store: no answer") {
		t.Errorf("unready: got %d, %q", code, out)
	}
	ready = nil
	if code, out, _ := runIn(t, env, "healthcheck"); code != exitDone || !strings.Contains(out, "store: ok") {
		t.Errorf("ready: got %d, %q", code, out)
	}
	server.Close()
	if code, _, errs := runIn(t, env, "healthcheck"); code != exitFailed || !strings.Contains(errs, "RENEWD_HTTP_ADDR") {
		t.Errorf("nobody there: got %d, %q", code, errs)
	}
}
