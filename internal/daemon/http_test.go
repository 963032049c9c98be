package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

func testSurface() adminHandler {
	return adminHandler{
		metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "metrics")
		}),
		services: http.NotFound,
		probes:   func() []probe { return nil },
		jwks:     func() []byte { return []byte(`{"keys":[]}`) },
		schemas:  fstest.MapFS{"user.synced.json": {Data: []byte(`{}`)}},
		logger:   slog.New(slog.DiscardHandler),
	}
}

func get(t *testing.T, h http.Handler, path, token string) (int, string) {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, path, nil)
	req.Host = "127.0.0.1:7460"
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return rec.Code, rec.Body.String()
}

// Keys that a root has signed are served as they are.
func TestSignedKeysAreServed(t *testing.T) {
	t.Parallel()
	s := testSurface()
	s.open = true
	for want, answer := range map[int]func() ([]byte, error){
		http.StatusOK:                 func() ([]byte, error) { return []byte("a.b.c"), nil },
		http.StatusNotFound:           func() ([]byte, error) { return nil, nil },
		http.StatusServiceUnavailable: func() ([]byte, error) { return nil, errors.New("away") },
	} {
		s.signed = func(context.Context) ([]byte, error) { return answer() }
		code, body := get(t, s.handler(), "/.well-known/jwks.jwt", "")
		if code != want || want == http.StatusOK && body != "a.b.c" {
			t.Errorf("got %d %s, want %d", code, body, want)
		}
	}
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
		s.open, s.token = c.open, secret.New(c.set)
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

// A site of a browser on this machine may let its own name point here: without a token only this
// machine's names are answered.
func TestHTTPGuardsAgainstOtherNamesOfThisMachine(t *testing.T) {
	t.Parallel()
	s := testSurface()
	s.open = true
	for host, want := range map[string]int{
		"127.0.0.1":                 200,
		"127.0.0.1:7460":            200,
		"localhost:7460":            200,
		"[::1]:7460":                200,
		"[::1]":                     200,
		"evil.example:7460":         403,
		"evil.example":              403,
		"192.0.2.1:7460":            403,
		"":                          403,
		"localhost.evil.example:80": 403,
	} {
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Host = host
		rec := httptest.NewRecorder()
		s.handler().ServeHTTP(rec, req)
		if rec.Code != want {
			t.Errorf("Host %q: got %d, want %d", host, rec.Code, want)
		}
	}
}

// What fails is for those who have the token; how often anybody asks costs nothing.
func TestHTTPReadyTellsStrangersNoDetails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		s := testSurface()
		s.token = secret.New("0123456789abcdef")
		s.probes = func() []probe {
			asked++
			return []probe{{
				"store",
				func(context.Context) error {
					return errors.New("no answer from db:5432 for user renewd")
				},
			}}
		}
		h := s.handler()
		for range 100 {
			code, body := get(t, h, "/readyz", "")
			if code != 503 || strings.Contains(body, "5432") ||
				!strings.Contains(body, "see the log") {
				t.Fatalf("got %d %s", code, body)
			}
		}
		code, body := get(t, h, "/readyz", "0123456789abcdef")
		if code != 503 || !strings.Contains(body, "db:5432") {
			t.Errorf("with the token: got %d %s", code, body)
		}
		<-time.After(probeFor)
		get(t, h, "/readyz", "")
		if asked != 2 {
			t.Errorf("the probes were asked %d times, want once for the 101 "+
				"requests at once and once later", asked)
		}
	})
}

func TestHTTPReadyNamesWhatIsNot(t *testing.T) {
	t.Parallel()
	s := testSurface()
	s.open = true
	s.probes = func() []probe {
		return []probe{
			{"nats", func(context.Context) error { return nil }},
			{"store", func(context.Context) error { return errors.New("no answer from db:5432") }},
		}
	}
	code, body := get(t, s.handler(), "/readyz", "")
	var got Readiness
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if code != 503 || got.Status != "unready" || got.Checks["nats"] != "ok" ||
		got.Checks["store"] != "no answer from db:5432" {
		t.Errorf("got %d %+v", code, got)
	}
	if code, _ := get(t, s.handler(), "/nothing", ""); code != 404 {
		t.Errorf("got %d, want 404", code)
	}
}

func TestHTTPServerEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- ServeHTTP(ctx, l, testSurface().handler(), slog.New(slog.DiscardHandler))
	}()
	res, err := http.Get("http://" + l.Addr().String() + "/livez")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	_, err = Listen(ctx, l.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "RENEWD_HTTP_ADDR") {
		t.Errorf("a port in use: got %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
