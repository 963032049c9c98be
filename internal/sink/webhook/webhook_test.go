package webhook_test

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/schema"
)

var (
	oldSecret = "whsec_" + strings.Repeat("b2xk", 8) // 24 bytes
	newSecret = "whsec_" + strings.Repeat("bmV3", 10)
)

// endpoint is a receiver, which answers as it is told and keeps what came.
type endpoint struct {
	*httptest.Server
	mu     sync.Mutex
	answer http.HandlerFunc
	heads  []http.Header
	bodies [][]byte
}

func newEndpoint(t *testing.T, answer http.HandlerFunc) *endpoint {
	e := &endpoint{answer: answer}
	e.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		e.mu.Lock()
		e.heads, e.bodies = append(e.heads, r.Header), append(e.bodies, body)
		answer := e.answer
		e.mu.Unlock()
		answer(w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) config() webhook.Config {
	roots := x509.NewCertPool()
	roots.AddCert(e.Certificate())
	return webhook.Config{
		URL: e.URL + "/hooks/T0KEN-in-the-path", Secrets: []secret.Value{secret.New(newSecret),
			secret.New(oldSecret)},
		RootCAs: roots, AllowPrivate: true, Version: "test",
		Headers: map[string]secret.Value{"Authorization": secret.New("Bearer its-own")},
	}
}

func target(t *testing.T, c webhook.Config) *webhook.Target {
	t.Helper()
	to, err := webhook.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Close)
	return to
}

func answering(status int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
	}
}

var signedOut = schema.Event{
	ID: "o7Xq", Source: "/renewd", Type: schema.UserSignedOut, Provider: "propelauth",
	User: "jane@example.com",
	Time: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC), Data: json.RawMessage(`{"version":7}`),
}

// What is sent is verified by the reference library of Standard Webhooks, with each of the secrets,
// and is the event in the JSON format of CloudEvents.
func TestReferenceLibraryVerifies(t *testing.T) {
	at := newEndpoint(t, answering(204))
	to := target(t, at.config())
	for range 2 {
		if err := to.Deliver(t.Context(), signedOut); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []string{oldSecret, newSecret} {
		oracle, err := standardwebhooks.NewWebhook(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := oracle.Verify(at.bodies[0], at.heads[0]); err != nil {
			t.Error("the reference library refuses it:", err)
		}
		if err := oracle.Verify(append(at.bodies[0], ' '), at.heads[0]); err == nil {
			t.Error("the reference library takes a changed body")
		}
	}
	if a, b := at.heads[0].Get("webhook-id"), at.heads[1].Get("webhook-id"); a != b ||
		a != signedOut.ID {
		t.Errorf("the id is %q, and over a retry %q", a, b)
	}
	if got := at.heads[0].Get("Authorization"); got != "Bearer its-own" {
		t.Errorf("the settings' header is %q", got)
	}
	var got map[string]any
	if err := json.Unmarshal(at.bodies[0], &got); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"specversion": "1.0", "id": "o7Xq", "type": "user.signed_out",
		"subject":  "jane@example.com",
		"provider": "propelauth", "timestamp": "2026-01-31T12:00:00Z",
		"time": "2026-01-31T12:00:00Z", "source": "/renewd",
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

// A foreign id that would make the signed text ambiguous, or no header, is replaced by a digest.
func TestIDs(t *testing.T) {
	at := newEndpoint(t, answering(200))
	to := target(t, at.config())
	oracle, err := standardwebhooks.NewWebhook(newSecret)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, id := range []string{"a.b", "a b", "ä", "plain"} {
		e := signedOut
		e.ID = id
		if err := to.Deliver(t.Context(), e); err != nil {
			t.Fatal(id, err)
		}
		sent := at.heads[i].Get("webhook-id")
		if strings.ContainsAny(sent, ". ") || seen[sent] {
			t.Errorf("%q is sent as %q", id, sent)
		}
		seen[sent] = true
		if err := oracle.Verify(at.bodies[i], at.heads[i]); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
}

// Each answer is taken for what it says, and no error shows the address or the answer's body.
func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		blame  sink.Blame // empty: success
		after  time.Duration
		says   string
	}{
		"accepted":    {answering(202), "", 0, ""},
		"gone":        {answering(410), sink.Gone, 0, "answered 410"},
		"bad request": {answering(400), sink.Unclear, 0, "answered 400"},
		"failing":     {answering(500), sink.Unclear, 0, "answered 500"},
		"redirect": {answering(302, "Location", "/elsewhere"), sink.Unclear, 0,
			"redirects are not followed"},
		"throttling": {answering(429, "Retry-After", "120"), sink.Throttled, 2 * time.Minute,
			"answered 429"},
		"away until then": {answering(503, "Retry-After",
			time.Now().Add(time.Hour).UTC().Format(http.TimeFormat)), sink.Throttled,
			59 * time.Minute, "answered 503"},
		"away":     {answering(503), sink.Unclear, 0, "answered 503"},
		"nonsense": {answering(503, "Retry-After", "-5"), sink.Unclear, 0, "answered 503"},
		"hanging up": {func(http.ResponseWriter,
			*http.Request) {
			panic(http.ErrAbortHandler)
		}, sink.Unclear, 0, "no answer"},
		"telling": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the secret of jane@example.com", 500)
		}, sink.Unclear, 0, "answered 500"},
	} {
		t.Run(name, func(t *testing.T) {
			at := newEndpoint(t, c.answer)
			err := target(t, at.config()).Deliver(t.Context(), signedOut)
			if c.blame == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			blame, after := sink.Unclear, time.Duration(0)
			if f, ok := errors.AsType[*sink.Fault](err); ok {
				blame, after = f.Blame, f.After
			}
			if blame != c.blame || after < c.after || after > c.after+time.Minute ||
				!strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("%v (%s, after %v), want %s, %s", err, blame, after, c.blame, c.says)
			}
			for _, hidden := range []string{"T0KEN", "jane", "its-own", newSecret} {
				if strings.Contains(err.Error(), hidden) {
					t.Errorf("the error shows %s: %v", hidden, err)
				}
			}
			if len(at.heads) > 1 {
				t.Errorf("%d requests for one delivery", len(at.heads))
			}
		})
	}
}

// An endpoint that is not there, or whose certificate is another's, is at fault as a whole.
func TestUnreachable(t *testing.T) {
	at := newEndpoint(t, answering(200))
	stranger := at.config()
	stranger.RootCAs = x509.NewCertPool()
	closed := at.config()
	inside := at.config()
	inside.AllowPrivate = false
	for name, c := range map[string]webhook.Config{"certificate": stranger,
		"private network": inside} {
		if f, ok := errors.AsType[*sink.Fault](target(t, c).Deliver(t.Context(),
			signedOut)); !ok || f.Blame != sink.Unreachable {
			t.Errorf("%s: %v", name, f)
		}
	}
	at.Close()
	f, ok := errors.AsType[*sink.Fault](target(t, closed).Deliver(t.Context(), signedOut))
	if !ok || f.Blame != sink.Unreachable || strings.Contains(f.Error(), "T0KEN") {
		t.Errorf("nobody listens: %v", f)
	}
	if n := len(at.heads); n > 0 {
		t.Errorf("%d requests came through", n)
	}
}

// A slow endpoint is given up after the timeout, and it is not clear whose fault that is.
func TestTimeout(t *testing.T) {
	over := make(chan struct{})
	at := newEndpoint(t, func(http.ResponseWriter, *http.Request) { <-over })
	defer close(over)
	c := at.config()
	c.Timeout = 50 * time.Millisecond
	err := target(t, c).Deliver(t.Context(), signedOut)
	if _, ok := errors.AsType[*sink.Fault](err); ok ||
		!strings.Contains(fmt.Sprint(err), "no answer in 50ms") {
		t.Error(err)
	}
}

// Mistakes in the settings name the setting, and show no secret.
func TestCheck(t *testing.T) {
	good := webhook.Config{URL: "https://example.com/hook",
		Secrets: []secret.Value{secret.New(newSecret)}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*webhook.Config){
		"url: missing":       func(c *webhook.Config) { c.URL = "" },
		"url: plain http":    func(c *webhook.Config) { c.URL = "http://example.com" },
		"url: want https://": func(c *webhook.Config) { c.URL = "ftp://example.com" },
		"url: want no user":  func(c *webhook.Config) { c.URL = "https://u:p@example.com" },
		"secret: missing":    func(c *webhook.Config) { c.Secrets = nil },
		"secret: want whsec_": func(c *webhook.Config) {
			c.Secrets = []secret.Value{secret.New("whsec_short")}
		},
		"headers: Webhook-Id is": func(c *webhook.Config) {
			c.Headers = map[string]secret.Value{"Webhook-Id": secret.New("x")}
		},
	} {
		c := good
		change(&c)
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), want) ||
			strings.Contains(err.Error(), "short") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// An error quotes nothing of what an endpoint sends that speaks no HTTP.
func TestErrorQuotesNoAnswer(t *testing.T) {
	for _, sent := range []string{
		"s3cret-of-the-endpoint\r\n\r\n", "HTTP/1.1 s3cret-of-the-endpoint\r\n\r\n",
		"HTTP/1.1 200 OK\r\ns3cret-of-the-endpoint\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: s3cret-of-the-endpoint\r\n\r\n",
	} {
		at := newEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, sent) // the client may be gone
			_ = c.Close()
		})
		c := at.config()
		err := target(t, c).Deliver(t.Context(), signedOut)
		if err == nil || strings.Contains(err.Error(), "s3cret") ||
			!strings.HasPrefix(err.Error(), "no answer") {
			t.Errorf("%q: %v", sent, err)
		}
	}
}
