package runner_test

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/renewd/renewd/internal/runner"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

const traceID, spanID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

func TestSpanLinksToThePublisher(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header nats.Header
		linked bool
	}{
		"lower case": {
			nats.Header{"traceparent": {"00-" + traceID + "-" + spanID + "-01"}}, true,
		},
		"other case": {
			nats.Header{"Traceparent": {"00-" + traceID + "-" + spanID + "-01"}}, true,
		},
		"malformed":    {nats.Header{"traceparent": {"00-" + traceID + "-zz-01"}}, false},
		"not a header": {nats.Header{"traceparent": {"\x01\xff"}}, false},
		"none":         {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 5*time.Second)
			recorder := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
			inner := make(chan trace.SpanContext, 1)
			config := b.config(func(ctx context.Context, m *runner.Message) error {
				inner <- trace.SpanContextFromContext(ctx)
				return nil
			})
			config.Tracer = provider.Tracer("test")
			b.run(config)
			if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{
				Subject: "work.u17",
				Header:  c.header,
				Data:    []byte("x"),
			}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a span", func() bool { return len(recorder.Ended()) == 1 })
			span := recorder.Ended()[0]
			if span.Name() != "process work" || span.SpanKind() != trace.SpanKindConsumer ||
				span.Parent().IsValid() {
				t.Errorf("span %s, %v, parent %v", span.Name(), span.SpanKind(), span.Parent())
			}
			if (<-inner).SpanID() != span.SpanContext().SpanID() {
				t.Error("the handler runs outside of the span")
			}
			if len(span.Events()) != 1 || span.Events()[0].Name != "ack" {
				t.Errorf("events %v", span.Events())
			}
			links := span.Links()
			if c.linked != (len(links) == 1) {
				t.Fatalf("%d links", len(links))
			}
			if c.linked &&
				(links[0].SpanContext.TraceID().String() != traceID ||
					links[0].SpanContext.SpanID().String() != spanID) {
				t.Errorf("linked to %v", links[0].SpanContext)
			}
		})
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	reader := sdkmetric.NewManualReader()
	c := b.config(func(_ context.Context, m *runner.Message) error {
		if m.Deliveries == 1 {
			return runner.Retry(errFlaky, 0)
		}
		return nil
	})
	c.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	stop := b.run(c)
	b.publish("work.u17", "")
	b.empty()
	stop()

	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	sums := map[string]int64{}
	for _, scope := range got.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					verdict, _ := p.Attributes.Value("renewd.verdict")
					sums[m.Name+" "+verdict.AsString()] += p.Value
					checkCardinality(t, p.Attributes)
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					sums[m.Name] += int64(p.Count)
					checkCardinality(t, p.Attributes)
				}
			}
		}
	}
	for name, want := range map[string]int64{
		"messaging.client.consumed.messages ack":   1,
		"messaging.client.consumed.messages retry": 1,
		"messaging.process.duration":               2,
		"renewd.messages.in_hand ":                 0,
		"renewd.messages.redelivered ":             1,
	} {
		if v, ok := sums[name]; !ok || v != want {
			t.Errorf("%s: %d (there: %v), want %d", name, v, ok, want)
		}
	}
}

func checkCardinality(t *testing.T, set attribute.Set) {
	t.Helper()
	for _, kv := range set.ToSlice() {
		if kv.Key == "messaging.destination.name" || kv.Value.AsString() == "work.u17" {
			t.Errorf("%s=%s on a metric", kv.Key, kv.Value.AsString())
		}
	}
}
