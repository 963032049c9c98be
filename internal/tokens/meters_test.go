package tokens_test

import (
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/schema"
)

// Reads are counted by door and result. No label holds a user or a reader.
func TestReadsAreCounted(t *testing.T) {
	reader := sdk.NewManualReader()
	w := newWorld(t, tokens.Config{Meter: sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("")})
	w.has("u", time.Hour)
	ask := func(user string, door tokens.Door) {
		t.Helper()
		_, err := w.source.Get(t.Context(), tokens.Request{
			Provider: "p", User: user, Reader: "shop", Door: door,
		})
		if _, no := errors.AsType[*schema.NoToken](err); err != nil && !no {
			t.Fatal(err)
		}
	}
	for range 3 {
		ask("u", tokens.DoorHTTP)
	}
	ask("u", tokens.DoorNATS)
	ask("nobody", tokens.DoorNATS)
	w.source.Refused(tokens.Request{Provider: "p", Door: tokens.DoorNATS}, schema.TokenForbidden)
	w.source.Refused(tokens.Request{Provider: "made up", Door: tokens.DoorNATS},
		schema.TokenForbidden)

	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		sum, ok := m.Data.(metricdata.Sum[int64])
		if !ok {
			continue
		}
		for _, p := range sum.DataPoints {
			got[m.Name+" "+p.Attributes.Encoded(attribute.DefaultEncoder())] += p.Value
		}
	}
	for name, want := range map[string]int64{
		"renewd.token.reads door=http,provider=p,result=ok":              3,
		"renewd.token.reads door=nats,provider=p,result=ok":              1,
		"renewd.token.reads door=nats,provider=p,result=unknown_user":    1,
		"renewd.token.reads door=nats,provider=p,result=forbidden":       1,
		"renewd.token.reads door=nats,provider=unknown,result=forbidden": 1,
		"renewd.token.first_reads provider=p":                            2, // one at each door
	} {
		if got[name] != want {
			t.Errorf("%s: %d, want %d", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("counted too: %v", got)
	}
}
