package sink

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// meters are the figures of one sink. The process that runs the sink reports the gauges.
type meters struct {
	name       attribute.KeyValue
	deliveries metric.Int64Counter
	gauges     metric.Registration
}

func newMeters(s *Sink) (m meters, err error) {
	m.name = attribute.String("sink", s.Name)
	meter := s.Meter
	m.deliveries, err = meter.Int64Counter("renewd.sink.deliveries", metric.WithUnit("{delivery}"),
		metric.WithDescription("Tries to deliver an outcome to a sink, by what became of it; "+
			"dead: given up."))
	if err != nil {
		return m, err
	}
	lag, err := meter.Float64ObservableGauge("renewd.sink.lag", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest outcome that a sink's receiver does not have "+
			"yet."))
	if err != nil {
		return m, err
	}
	waiting, err := meter.Int64ObservableGauge("renewd.sink.waiting", metric.WithUnit("{outcome}"),
		metric.WithDescription("Outcomes that failed, or wait behind one of the same user that "+
			"did."))
	if err != nil {
		return m, err
	}
	dead, err := meter.Int64ObservableGauge("renewd.sink.dead", metric.WithUnit("{outcome}"),
		metric.WithDescription("Outcomes that were given up: see renewd sinks show."))
	if err != nil {
		return m, err
	}
	down, err := meter.Int64ObservableGauge("renewd.sink.down", metric.WithUnit("{sink}"),
		metric.WithDescription("1: the target as a whole fails, or the sink is stopped."))
	if err != nil {
		return m, err
	}
	of := metric.WithAttributes(m.name)
	m.gauges, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		f := s.status.Load()
		if f == nil {
			return nil
		}
		n, buried, _ := f.ledger.counts()
		o.ObserveInt64(waiting, int64(n), of)
		o.ObserveInt64(dead, int64(buried), of)
		f.mu.Lock()
		defer f.mu.Unlock()
		age, halted := 0.0, int64(0)
		if at := f.status.Oldest; !at.IsZero() {
			age = max(0, s.Now().Sub(at).Seconds())
		}
		if since, _ := f.breaker.down(); !since.IsZero() || f.line.Load() == nil {
			halted = 1
		}
		o.ObserveFloat64(lag, age, of)
		o.ObserveInt64(down, halted, of)
		return nil
	}, lag, waiting, dead, down)
	return m, err
}

func (m meters) count(ctx context.Context, result string) {
	m.deliveries.Add(ctx, 1, metric.WithAttributes(m.name, attribute.String("result", result)))
}

func (m meters) close() {
	_ = m.gauges.Unregister() // cannot fail for a registration by RegisterCallback
}
