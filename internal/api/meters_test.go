package api_test

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/testkit"
)

// Requests are measured by the routes of the description (OpenTelemetry's HTTP conventions). No
// label holds a user, a client, or what else a caller may choose.
func TestRequestsAreMeasured(t *testing.T) {
	reader := sdk.NewManualReader()
	meter := sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("")
	w := newWorld(t, func(c *api.Config) { c.Meter = meter })
	for range 2 {
		w.ask(t, "tokens", "GET", "/v1/users/acme/canary-user/token", "")
	}
	w.ask(t, "tokens", "GET", "/v1/users/acme/canary-user", "")
	w.ask(t, "", "GET", "/v1/users/acme/canary-user/token?min_valid=canary", "")
	w.ask(t, "all", "GET", "/v1/users/acme/store-down", "")
	w.ask(t, "all", "GET", "/v1/canary", "")
	ctx, leave := context.WithCancel(t.Context())
	w.listen(t, ctx, "all", "?provider=acme&user=canary-user", "")

	durations := func() (counts map[string]uint64, listeners int64) {
		t.Helper()
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		counts = map[string]uint64{}
		for _, m := range all.ScopeMetrics[0].Metrics {
			switch data := m.Data.(type) {
			case metricdata.Histogram[float64]:
				if m.Name != "http.server.request.duration" || m.Unit != "s" {
					t.Errorf("%s in %s", m.Name, m.Unit)
				}
				for _, p := range data.DataPoints {
					counts[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Count
				}
			case metricdata.Sum[int64]:
				if m.Name == "renewd.http.listeners" {
					listeners = data.DataPoints[0].Value
				}
			}
		}
		return counts, listeners
	}
	const token = "http.request.method=GET,http.response.status_code=200," +
		"http.route=/v1/users/{provider}/{user}/token,network.protocol.version=1.1,url.scheme=http"
	state := strings.Replace(token, "/token", "", 1)
	want := map[string]uint64{
		token: 2,
		strings.Replace(token, "=200", "=401", 1):                     1,
		strings.Replace(state, "=200", "=403", 1):                     1,
		"error.type=503," + strings.Replace(state, "=200", "=503", 1): 1,
	}
	got, listeners := durations()
	for labels, n := range want {
		if got[labels] != n {
			t.Errorf("%s: %d, want %d", labels, got[labels], n)
		}
		delete(got, labels)
	}
	if len(got) > 0 || listeners != 1 {
		t.Errorf("%d listeners; measured too: %v", listeners, got)
	}
	leave()
	outcomes := strings.Replace(token, "/users/{provider}/{user}/token", "/outcomes", 1)
	testkit.Eventually(t, "the listener that left is measured", func() bool {
		got, listeners := durations()
		return listeners == 0 && got[outcomes] == 1
	})
	answer, _ := w.ask(t, "all", "HEAD", "/v1/outcomes", "", "Accept", "text/event-stream")
	if answer.StatusCode != http.StatusOK {
		t.Error(answer.Status)
	}
	head := strings.Replace(outcomes, "=GET", "=HEAD", 1)
	if got, _ := durations(); got[head] != 1 {
		t.Errorf("measured %v", got)
	}
}
