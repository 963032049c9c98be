package systemtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Tokens go through everything, good and bad, and are found nowhere but where they belong: sealed
// in LOGINS, encrypted in the store, and at their provider.
func TestNoTokenAnywhere(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	reader := metric.NewManualReader()
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	var log syncBuffer
	w := newWorld(t, options{
		provider: idptest.Options{Lifetime: 3 * time.Second}, concurrency: 8, postgres: true,
		policy: grant.Policy{Floor: time.Second, ConfirmMin: time.Second, ConfirmMax: time.Second, RetryMin: time.Second, RetryMax: time.Second},
	})
	w.logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.tracers, w.meters = tracers, meters
	w.follow()
	w.start(8)
	p := w.publisher()
	var secrets []string
	for _, name := range []string{"fine", "ended", "stormy"} {
		tokens := w.provider.Login(name)
		secrets = append(secrets, tokens.Access, tokens.Refresh)
		if _, err := p.Login(t.Context(), provider, name, publishers.Tokens{AccessToken: tokens.Access, RefreshToken: tokens.Refresh, ExpiresIn: 3 * time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	w.await("everybody in", time.Minute, func(all map[string][]schema.Event) bool { return len(all) == 3 })
	// Before the first renewal under these settings nobody is signed out.
	w.await("the settings are proven", time.Minute, func(map[string][]schema.Event) bool { return w.provider.Renewals("fine") > 0 })
	w.provider.EndSessions("ended")
	w.provider.SetFault(func(r idptest.Request) *idptest.Fault {
		if r.User != "stormy" {
			return nil
		}
		// A provider that quotes what it was sent.
		return &idptest.Fault{Status: 500, Header: http.Header{"Content-Type": {"text/html"}}, Body: strings.Join(secrets, " ")}
	})
	w.await("a renewal, a sign-out and an outage", time.Minute, func(all map[string][]schema.Event) bool {
		ended := all["ended"]
		return w.provider.Renewals("fine") > 2 && len(ended) > 0 && ended[len(ended)-1].Type == schema.UserReauthRequired
	})
	// The tokens of the later generations are secrets too: all of this provider's look alike.
	found := func(where, text string) {
		t.Helper()
		for _, mark := range append(secrets, "rt.", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9") {
			if i := strings.Index(text, mark); i >= 0 {
				t.Errorf("a token is in %s: …%s…", where, text[max(0, i-60):min(len(text), i+20)])
				return
			}
		}
	}
	found("the log", log.String())
	found("a span", fmt.Sprintf("%+v", spans.GetSpans().Snapshots()))
	for _, s := range spans.GetSpans() {
		found("span "+s.Name, fmt.Sprintf("%v %v %v", s.Attributes, s.Events, s.Status))
	}
	var figures metricdata.ResourceMetrics
	w.must(reader.Collect(context.Background(), &figures))
	raw, err := json.Marshal(figures)
	w.must(err)
	found("a metric", string(raw))
	if len(spans.GetSpans()) == 0 || len(raw) < 500 || log.String() == "" {
		t.Errorf("nothing to look at: %d spans, %d bytes of metrics, %d of log", len(spans.GetSpans()), len(raw), len(log.String()))
	}
	w.inStreams(found)
	w.inDatabase(found)
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
				continue // removed
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
