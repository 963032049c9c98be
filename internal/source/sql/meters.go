package sql

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// meters are the figures of the watch of one source, in the process that has its lease.
type meters struct {
	source attribute.KeyValue
	rows   metric.Int64Counter
	down   metric.Registration
}

// newMeters has down asked whether the watch fails.
func newMeters(m metric.Meter, source string, down func() bool) (out meters, err error) {
	out.source = attribute.String("source", source)
	out.rows, err = m.Int64Counter("renewd.source.rows", metric.WithUnit("{row}"),
		metric.WithDescription("Rows of an app's table that changed, by what became of them: "+
			"taken as a login, passed, or why not. foreign: the token changed without a sign-in."))
	if err != nil {
		return out, err
	}
	gauge, err := m.Int64ObservableGauge("renewd.source.down", metric.WithUnit("{source}"),
		metric.WithDescription("1: an app's table cannot be read, or no login of it be published."))
	if err != nil {
		return out, err
	}
	out.down, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		n := int64(0)
		if down() {
			n = 1
		}
		o.ObserveInt64(gauge, n, metric.WithAttributes(out.source))
		return nil
	}, gauge)
	return out, err
}

// count counts a row that was looked at.
func (m meters) count(ctx context.Context, f finding) {
	result := "passed"
	switch {
	case f.problem != "":
		result = string(f.problem)
	case f.taken:
		result = "taken"
	}
	m.add(ctx, result)
	if f.changed() && f.foreign() {
		m.add(ctx, "foreign")
	}
}

func (m meters) add(ctx context.Context, result string) {
	m.rows.Add(ctx, 1, metric.WithAttributes(m.source, attribute.String("result", result)))
}

func (m meters) close() {
	_ = m.down.Unregister() // cannot fail for a registration by RegisterCallback
}
