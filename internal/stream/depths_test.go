package stream_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	sdk "go.opentelemetry.io/otel/sdk/metric"
)

func TestGauges(t *testing.T) {
	js, _ := fresh(t)
	reader := sdk.NewManualReader()
	e := engine(t, js, stream.Config{
		Meter:      sdk.NewMeterProvider(sdk.WithReader(reader)).Meter("test"),
		DepthEvery: 10 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	for i := range 3 {
		must(t, e.Arm(ctx, grant.Key{Provider: alice.Provider, User: fmt.Sprint(i)},
			time.Now().Add(time.Hour), work("x")))
	}
	must(t, e.Wake(ctx, alice, work("in hand")))
	m := renewal(t, js)
	must(t, e.Wake(ctx, grant.Key{Provider: alice.Provider, User: "bob"}, work("waits")))
	park(t, e, alice, grant.Parcel{})
	_, err := js.Publish(ctx, "user.refresh_due.propelauth.u1", nil)
	must(t, err)
	eventually(t, "the gauges show it", func() bool {
		return total(t, reader, "renewd.timers") == 3 && total(t, reader, "renewd.parked") == 1 &&
			total(t, reader, "renewd.queue.waiting") == 2 &&
			total(t, reader, "renewd.queue.in_hand") == 1
	})
	must(t, e.Ready())
	ack(t, m)
	cancel()
	must(t, <-done)
	if got := names(t, reader); strings.Contains(got, "renewd.timers") {
		t.Errorf("after Run the gauges go on: %s", got)
	}
}
