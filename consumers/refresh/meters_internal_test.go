package refresh

import (
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Labels that were made once count what they say, each combination by itself, with the types that
// they were given.
func TestLabelsAreKeptApart(t *testing.T) {
	reader := sdkmetric.NewManualReader()
	m, err := newMeters(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []grant.Grant{
		{Key: grant.Key{Provider: "a"}, Refreshed: true},
		{Key: grant.Key{Provider: "a"}},
		{Key: grant.Key{Provider: "b"}},
		{Key: grant.Key{Provider: "a"}},
	} {
		m.finished(t.Context(), grant.Work{}, &g, g.NextDueAt)
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	have := map[attribute.Set]int64{}
	for _, p := range all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
		have[p.Attributes] = p.Value
	}
	set := func(provider string, refreshed bool) attribute.Set {
		return attribute.NewSet(
			attribute.String("provider", provider),
			attribute.String("outcome", "retry"),
			attribute.String("reason", ""),
			attribute.Bool("refreshed", refreshed))
	}
	if len(have) != 3 || have[set("a", true)] != 1 || have[set("a", false)] != 2 ||
		have[set("b", false)] != 1 {
		t.Errorf("counted %v", have)
	}
}
