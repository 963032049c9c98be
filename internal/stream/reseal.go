package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
)

// Resealer seals stored records anew that are sealed with a key of before, so that the key can
// leave. It changes nothing of a record but the sealed tokens and the revision, by
// compare-and-swap, and leaves those alone that a worker has claimed or is about to look at. Any
// number of workers run one; a lease lets one of them walk at a time.
//
// The zero value of a field but Store, Engine, Old and KeyOf stands for its default. Do not change
// a field after Run was called.
type Resealer struct {
	Store  grant.Store
	Engine *Engine
	// Old lists the keys that records are to leave, none if there are none: then nothing is walked.
	// Every worker must be able to open what Store seals. KeyOf names the key of a record from
	// grant.Sealed's Head. Both are called from one goroutine.
	Old   func() []string
	KeyOf func(head []byte) string
	// Holder names this process in the lease. Default a random text.
	Holder string
	// Every is the pause after a walk that left records with an old key, and Rest after one that
	// left none. Keys that were not old at the last walk do not wait. Defaults 10 min, 1 h.
	Every, Rest time.Duration
	// Poll is how often a worker looks whether a walk is due. Default 15 s.
	Poll time.Duration
	// Lease is how long a walker that died keeps the others waiting. Default 30 s.
	Lease time.Duration
	// Page is how many records one ListSealed asks for, Pause the wait between two of them.
	// Defaults 500, 100 ms; a negative Pause means none.
	Page  int
	Pause time.Duration
	// PerSecond is how many records are sealed anew in a second, at most. Default 200.
	PerSecond float64
	// OnWalk, if set, is told of each walk that this worker finished.
	OnWalk func(Resealed)
	// Meter gets the counter and the gauge, Logger what went wrong. Default none.
	Meter  metric.Meter
	Logger *slog.Logger
}

// Resealed is what one walk over the store found and did.
type Resealed struct {
	Sealed int // records sealed anew
	Left   int // records left with an old key, those that cannot be read included
}

func (r Resealer) withDefaults() Resealer {
	r.Every = cmp.Or(r.Every, 10*time.Minute)
	r.Rest = cmp.Or(r.Rest, time.Hour)
	r.Poll = cmp.Or(r.Poll, 15*time.Second)
	r.Lease = cmp.Or(r.Lease, 30*time.Second)
	r.Pause = cmp.Or(r.Pause, 100*time.Millisecond)
	r.Holder = cmp.Or(r.Holder, rand.Text())
	r.Page = cmp.Or(r.Page, 500)
	r.PerSecond = cmp.Or(r.PerSecond, 200)
	if r.Meter == nil {
		r.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	return r
}

// Run walks until ctx ends. What goes wrong is logged and tried again with the next walk; its error
// is about the meter only.
func (r Resealer) Run(ctx context.Context) error {
	r = r.withDefaults()
	w := &resealing{Resealer: r, pace: rate.NewLimiter(rate.Limit(r.PerSecond), 1)}
	if err := w.instruments(); err != nil {
		return fmt.Errorf("resealer: register metrics: %w", err)
	}
	pollTurns(ctx, r.Poll, w.turn, func(err error) {
		r.Logger.WarnContext(ctx, "sealing records anew stopped before the end of the store; "+
			"it will be tried again", "error", err)
	})
	return nil
}

// resealing is one Run.
type resealing struct {
	Resealer
	pace     *rate.Limiter
	resealed metric.Int64Counter
	left     metric.Int64Gauge
}

func (w *resealing) instruments() (err error) {
	w.resealed, err = w.Meter.Int64Counter("renewd.grants.resealed", metric.WithUnit("{grant}"),
		metric.WithDescription("Records whose tokens were sealed anew: their key is an old one."))
	if err != nil {
		return err
	}
	w.left, err = w.Meter.Int64Gauge("renewd.grants.old_key", metric.WithUnit("{grant}"),
		metric.WithDescription("Records that the last walk for it left sealed with an old key."))
	return err
}

// turn does the walk if one is due and no other worker has the lease.
func (w *resealing) turn(ctx context.Context) error {
	old := w.Old()
	if len(old) == 0 {
		w.left.Record(ctx, 0)
		return nil
	}
	lease, err := w.Engine.take(ctx, leaseResealing, w.Holder, w.Lease, func(l lease) bool {
		return slices.ContainsFunc(old, func(id string) bool { return !slices.Contains(l.Old, id) })
	})
	if err != nil {
		return err
	}
	w.left.Record(ctx, int64(lease.Left))
	if lease.Holder != w.Holder {
		return nil
	}
	found, err := w.walk(ctx, lease, old)
	if err != nil {
		return err
	}
	lease.Old, lease.Left = old, found.Left
	pause := w.Every
	if found.Left == 0 {
		pause = w.Rest
	}
	if err := lease.release(ctx, pause); err != nil {
		return err
	}
	w.left.Record(ctx, int64(found.Left))
	if found.Sealed > 0 {
		w.Logger.InfoContext(ctx, "sealed records anew whose key is an old one",
			"sealed", found.Sealed, "left", found.Left)
	}
	if w.OnWalk != nil {
		w.OnWalk(found)
	}
	return nil
}

// walk goes over the store once. A record that is written meanwhile may be met twice.
func (w *resealing) walk(ctx context.Context, l *lease, old []string) (found Resealed, _ error) {
	for cursor := ""; ; {
		page, next, err := w.Store.ListSealed(ctx, cursor, w.Page)
		if err != nil {
			return found, fmt.Errorf("list grants: %w", err)
		}
		for _, s := range page {
			if !slices.Contains(old, w.KeyOf(s.Head)) {
				continue
			}
			done, err := w.reseal(ctx, l, s)
			switch {
			case errors.Is(err, grant.ErrNotFound):
			case err != nil:
				return found, err
			case done:
				found.Sealed++
			default:
				found.Left++
			}
		}
		if next == "" {
			return found, nil
		}
		cursor = next
		if err := l.extend(ctx); err != nil {
			return found, err
		}
		if err := wait(ctx, w.Pause); err != nil {
			return found, err
		}
	}
}

// reseal seals one record anew, as it was listed: with another revision it may be in use by now.
func (w *resealing) reseal(ctx context.Context, l *lease, s grant.Sealed) (done bool, err error) {
	if inUse(s.Due, w.Engine.Now()) {
		return false, nil
	}
	if err := w.pace.Wait(ctx); err != nil {
		return false, err
	}
	if err := l.extend(ctx); err != nil {
		return false, err
	}
	err = w.Store.Reseal(ctx, s.Key, s.Revision)
	switch {
	case errors.Is(err, grant.ErrConflict), errors.Is(err, grant.ErrUnreadable):
		return false, nil // another worker wrote it, or none can
	case errors.Is(err, grant.ErrRefused):
		w.Logger.WarnContext(ctx, "the store refuses a record that is sealed anew",
			"grant", s.Key, "error", err)
		return false, nil
	case err != nil:
		return false, err
	}
	w.resealed.Add(ctx, 1, metric.WithAttributes(attribute.String("provider", s.Provider)))
	return true, nil
}

const (
	// lookBefore is how long before a record is due it is left to the worker that will look at it.
	lookBefore = time.Minute
	// lookAfter is how long that worker has, and a worker whose claim ran out. What waits for longer
	// waits for a provider that is away, or gone from the settings.
	lookAfter = 10 * time.Minute
)

// inUse reports whether a worker has the record, or is about to look at it and so to seal it anew.
func inUse(d grant.Due, now time.Time) bool {
	if !d.ClaimedUntil.IsZero() && now.Before(d.ClaimedUntil.Add(lookAfter)) {
		return true
	}
	return !d.At.IsZero() && now.After(d.At.Add(-lookBefore)) && now.Before(d.At.Add(lookAfter))
}
