package idp

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/secret"
)

// The document is read again each day, beside the calls, and what is known holds where that fails.
func TestTheDocumentIsReadAgainEachDay(t *testing.T) {
	var answers atomic.Int32 // of the document; from the second on the token endpoint is another
	var down atomic.Bool
	var base, called string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/openid-configuration" {
			called = r.URL.Path
			_, _ = w.Write([]byte(`{"access_token":"a"}`))
			return
		}
		n := answers.Add(1)
		if down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":"%s/token-%d","userinfo_endpoint":"%s/me"}`,
			base, base, n, base)
	}))
	t.Cleanup(s.Close)
	base = s.URL
	p, err := New(Config{
		ID:                "p",
		Preset:            "oidc",
		BaseURL:           s.URL,
		ClientID:          "c",
		ClientAuth:        AuthNone,
		AllowHTTPLoopback: true,
	}, Telemetry{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	now := time.Now()
	p.now = func() time.Time { return now }
	refresh := func(at string, asked int32) {
		t.Helper()
		if _, err := p.Refresh(context.Background(), secret.New("r")); err != nil {
			t.Fatal(err)
		}
		p.asks.Wait()
		if called != at || answers.Load() != asked {
			t.Errorf("called %s after %d readings, want %s after %d", called, answers.Load(), at,
				asked)
		}
	}
	refresh("/token-1", 1)
	now = now.Add(documentAge - time.Second)
	refresh("/token-1", 1)
	now = now.Add(time.Second)
	down.Store(true)
	refresh("/token-1", 2) // read beside the call, and failed
	refresh("/token-1", 2)
	now = now.Add(documentRetry)
	down.Store(false)
	refresh("/token-1", 3) // read beside the call
	refresh("/token-3", 3)
}
