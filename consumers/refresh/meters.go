package refresh

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// meters are the figures of this package. No figure carries a user id.
type meters struct {
	outcomes   metric.Int64Counter     // renewals by provider, outcome and reason
	calls      metric.Float64Histogram // provider calls by operation and class, in seconds
	lateness   metric.Float64Histogram // from due to done, in seconds
	parked     metric.Int64Counter
	lost       metric.Int64Counter
	superseded metric.Int64Counter
	outdated   metric.Int64Counter

	// known are options by label combination. There are few combinations, and making an option
	// costs more than counting.
	known *sync.Map
}

func newMeters(m metric.Meter) (meters, error) {
	out := meters{known: new(sync.Map)}
	var errs [7]error
	seconds := metric.WithExplicitBucketBoundaries(
		.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300)
	out.outcomes, errs[0] = m.Int64Counter("renewd.renewals",
		metric.WithDescription("Renewals finished, by provider, outcome and reason."))
	out.calls, errs[1] = m.Float64Histogram("renewd.provider.duration",
		metric.WithUnit("s"), seconds,
		metric.WithDescription("Calls to a provider, by operation and class of the answer."))
	out.lateness, errs[2] = m.Float64Histogram("renewd.renewal.lateness",
		metric.WithUnit("s"), seconds,
		metric.WithDescription("From the time a renewal was due, or asked for, to its outcome."))
	out.parked, errs[3] = m.Int64Counter("renewd.pairs.parked",
		metric.WithDescription("Rotated pairs that the store would not take at once."))
	out.lost, errs[4] = m.Int64Counter("renewd.pairs.lost",
		metric.WithDescription("Rotated pairs that could be neither saved nor parked. Must be 0."))
	out.superseded, errs[5] = m.Int64Counter("renewd.pairs.superseded",
		metric.WithDescription("Fresh pairs dropped because a newer login was stored meanwhile."))
	out.outdated, errs[6] = m.Int64Counter("renewd.grants.outdated",
		metric.WithDescription("Grants found older in the store than what was published, "+
			"by what became of them: the store was restored, or lost writes. Must be 0."))
	return out, errors.Join(errs[:]...)
}

func (m meters) called(
	ctx context.Context, provider, op string, f *grant.Fault, took time.Duration,
) {
	class := "ok"
	if f != nil {
		class = string(f.Class)
	}
	m.calls.Record(ctx, took.Seconds(), m.with(
		attribute.String("provider", provider),
		attribute.String("operation", op),
		attribute.String("class", class)))
}

// found counts a grant whose record in the store is outdated or missing.
func (m meters) found(ctx context.Context, provider, result string) {
	m.outdated.Add(ctx, 1,
		m.with(attribute.String("provider", provider), attribute.String("result", result)))
}

func (m meters) finished(ctx context.Context, w grant.Work, g *grant.Grant, now time.Time) {
	outcome, reason := "retry", g.LastError
	if g.Pending != nil {
		outcome = string(g.Pending.Type)
		if g.Pending.Type == schema.UserSynced {
			reason = ""
		}
	}
	provider := attribute.String("provider", g.Provider)
	m.outcomes.Add(ctx, 1, m.with(provider,
		attribute.String("outcome", outcome),
		attribute.String("reason", reason),
		attribute.Bool("refreshed", g.Refreshed)))
	if g.Pending != nil && !w.Cause.Time.IsZero() {
		m.lateness.Record(ctx, max(0, now.Sub(w.Cause.Time).Seconds()),
			m.with(provider, attribute.String("cause", string(w.Cause.Type))))
	}
}

// with is metric.WithAttributes, four at most, made once for each combination.
func (m meters) with(labels ...attribute.KeyValue) metric.MeasurementOption {
	var combination [4]attribute.KeyValue
	n := copy(combination[:], labels)
	if known, ok := m.known.Load(combination); ok {
		return known.(metric.MeasurementOption)
	}
	sorted := combination // NewSet sorts in place
	made := metric.WithAttributeSet(attribute.NewSet(sorted[:n]...))
	m.known.Store(combination, made)
	return made
}
