package systemtest_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Tokens go through everything, good and bad. They are found only where they belong: sealed in
// LOGINS, encrypted in the store, and at their provider.
func TestNoTokenAnywhere(t *testing.T) {
	var log syncBuffer
	exported := newCollector(t)
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: 3 * time.Second},
		concurrency: 8,
		postgres:    true,
		settings:    append(slices.Clone(quick), "RENEWD_POLICY_RETRY_MAX=1s"),
	})
	w.logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.follow()
	worker := w.start()
	p := w.publisher()
	var secrets []string
	for _, name := range []string{"fine", "ended", "stormy"} {
		tokens := w.provider.Login(name)
		secrets = append(secrets, tokens.Access, tokens.Refresh)
		if _, err := p.Login(t.Context(), provider, name, publishers.Tokens{
			AccessToken:  tokens.Access,
			RefreshToken: tokens.Refresh,
			ExpiresIn:    3 * time.Second,
		}); err != nil {
			t.Fatal(err)
		}
	}
	w.await("everybody in", time.Minute, func(all map[string][]schema.Event) bool {
		return len(all) == 3
	})
	// Before the first renewal under these settings no user is signed out.
	w.await("the settings are proven", time.Minute, func(map[string][]schema.Event) bool {
		return w.provider.Renewals("fine") > 0
	})
	w.provider.EndSessions("ended")
	w.provider.SetFault(func(r standin.Request) *standin.Fault {
		if r.User != "stormy" {
			return nil
		}
		// A provider that quotes what it was sent.
		return &standin.Fault{
			Status: 500,
			Header: http.Header{"Content-Type": {"text/html"}},
			Body:   strings.Join(secrets, " "),
		}
	})
	w.await("a renewal, a sign-out and an outage", time.Minute,
		func(all map[string][]schema.Event) bool {
			ended := all["ended"]
			return w.provider.Renewals("fine") > 2 && len(ended) > 0 &&
				ended[len(ended)-1].Type == schema.UserReauthRequired
		})
	// The tokens of later generations are secrets too. All tokens of this provider look alike.
	found := func(where, text string) {
		t.Helper()
		for _, mark := range append(secrets, "rt.", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9") {
			if i := strings.Index(text, mark); i >= 0 {
				t.Errorf("a token is in %s: …%s…", where, text[max(0, i-60):min(len(text), i+20)])
				return
			}
		}
	}
	w.onTheWire(found, "fine", "ended", "stormy")
	metrics := page(t, "http://"+worker.HTTPAddr+"/metrics")
	w.stop() // which exports what is left
	found("the log", log.String())
	found("a metric", metrics)
	for _, signal := range []string{"traces", "metrics"} {
		found("the exported "+signal, exported.sent(signal))
		if n := len(exported.sent(signal)); n < 500 {
			t.Errorf("%d bytes of %s were exported", n, signal)
		}
	}
	if len(metrics) < 500 || log.String() == "" {
		t.Errorf("nothing to look at: %d bytes of metrics, %d of log", len(metrics),
			len(log.String()))
	}
	w.inStreams(found)
	w.inDatabase(found)
}

// collector is an OTLP collector. It keeps what is exported to it, as it came.
type collector struct {
	mu   sync.Mutex
	body map[string]string // by path
}

// newCollector has workers that start from now on export to a collector. Their exporters read its
// address from the environment of this process, so no other test can run beside.
func newCollector(t *testing.T) *collector {
	c := &collector{body: map[string]string{}}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.body[r.URL.Path] += string(body)
	}))
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	return c
}

func (c *collector) sent(signal string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.body["/v1/"+signal]
}

// page is the body of a GET.
func page(t *testing.T, url string) string {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// onTheWire reads the users' tokens over NATS and looks at all messages that pass meanwhile.
func (w *world) onTheWire(found func(where, text string), users ...string) {
	w.t.Helper()
	service := w.connect().Conn()
	spy, err := service.SubscribeSync(">")
	w.must(err)
	given := 0
	for _, user := range users {
		whom := consumers.Whom{Provider: provider, User: user}
		token, err := consumers.Token(w.t.Context(), service, whom, 0)
		found("the error", fmt.Sprint(err))
		found("what is printed", fmt.Sprintf("%v %+v", token, token))
		if token.AccessToken != "" {
			given++
		}
	}
	answers := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		m, err := spy.NextMsg(time.Until(end))
		if err != nil {
			break
		}
		found("the wire, "+m.Subject, fmt.Sprint(m.Header)+string(bytes.ToValidUTF8(m.Data, nil)))
		answers++
	}
	if given == 0 || answers < 2*len(users) {
		w.t.Errorf("%d tokens given, %d messages seen", given, answers)
	}
}

// inStreams looks at every message of every stream.
func (w *world) inStreams(found func(where, text string)) {
	w.t.Helper()
	seen := 0
	for name := range w.js.StreamNames(w.t.Context()).Name() {
		s, err := w.js.Stream(w.t.Context(), name)
		w.must(err)
		for seq := s.CachedInfo().State.FirstSeq; seq <= s.CachedInfo().State.LastSeq; seq++ {
			m, err := s.GetMsg(w.t.Context(), seq)
			if err != nil {
				continue // the message was removed
			}
			seen++
			found(name+" "+m.Subject, fmt.Sprint(m.Header)+string(bytes.ToValidUTF8(m.Data, nil)))
		}
	}
	if seen == 0 {
		w.t.Error("no message in any stream")
	}
}

func (w *world) inDatabase(found func(where, text string)) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.database)
	w.must(err)
	defer conn.Close(w.t.Context())
	rows, err := conn.Query(w.t.Context(), "SELECT g::text FROM renewd.grants g")
	w.must(err)
	n := 0
	for rows.Next() {
		var row string
		w.must(rows.Scan(&row))
		found("the table", row)
		n++
	}
	if n != 3 {
		w.t.Errorf("%d rows", n)
	}
}
