package reconcile

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
	"github.com/renewd/renewd/internal/stream"
)

// Resealer seals again the records that are sealed with a former key, so that the key can leave. It
// also seals again the records of versions that bound no record to its tokens (grant.Digest). Only
// the sealed tokens and the revision of a record change, by compare-and-swap. Records that a worker
// has claimed or is about to look at are left alone. Any number of workers may run a Resealer; a
// lease lets one worker walk at a time.
//
// The zero value of a field but Store, Engine, Old and KeyOf stands for its default. Do not change
// a field after Run was called.
type Resealer struct {
	Store  grant.Store
	Engine *stream.Engine
	// Old lists the keys that records are to leave. Every worker must be able to open records
	// sealed by Store. KeyOf names the key of a record from grant.Sealed's Head. Both are called
	// from one goroutine.
	Old   func() []string
	KeyOf func(head []byte) string
	// Holder names this process in the lease. Default a random text.
	Holder string
	// Every is the pause after a walk that left records with an old key. Rest is the pause after a
	// walk that left no record, or only unbound records. A key that was not old at the last walk
	// does not wait. Defaults 10 min, 1 h.
	Every, Rest time.Duration
	// Idle is the pause after a walk that left no record, while no key is old. A store that was
	// restored, or written to by an older worker, has unbound records again. Default 24 h.
	Idle time.Duration
	// Poll is how often a worker looks whether a walk is due. Default 15 s.
	Poll time.Duration
	// Lease is how long a walker that died keeps the other workers waiting. Default 30 s.
	Lease time.Duration
	// Page is how many records one ListSealed asks for, Pause the wait between two pages. Defaults
	// 500, 100 ms; a negative Pause means no wait.
	Page  int
	Pause time.Duration
	// PerSecond is how many records are sealed again in a second, at most. Default 200.
	PerSecond float64
	// OnWalk, if set, is told of each walk finished by this worker.
	OnWalk func(Resealed)
	// Meter gets the counter and the gauges, Logger the errors. By default neither is kept.
	Meter  metric.Meter
	Logger *slog.Logger
}

// Resealed is the result of one walk over the store.
type Resealed struct {
	Sealed int // records sealed again
	Left   int // records left with an old key, unreadable records included
	// Unbound are records left unbound, whatever their key.
	Unbound int
}

func (r Resealer) withDefaults() Resealer {
	r.Every = cmp.Or(r.Every, 10*time.Minute)
	r.Rest = cmp.Or(r.Rest, time.Hour)
	r.Idle = cmp.Or(r.Idle, 24*time.Hour)
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

// Run walks until ctx ends. A failed walk is logged and tried again with the next walk. Run's error
// is about the meter only.
func (r Resealer) Run(ctx context.Context) error {
	r = r.withDefaults()
	w := &resealing{Resealer: r, pace: rate.NewLimiter(rate.Limit(r.PerSecond), 1)}
	if err := w.instruments(); err != nil {
		return fmt.Errorf("resealer: register metrics: %w", err)
	}
	pollTurns(ctx, r.Poll, w.turn, func(err error) {
		r.Logger.WarnContext(ctx, "re-sealing records stopped before the end of the store; "+
			"it will be tried again", "error", err)
	})
	return nil
}

// resealing is the state of one Run.
type resealing struct {
	Resealer
	pace     *rate.Limiter
	resealed metric.Int64Counter
	left     metric.Int64Gauge
	unbound  metric.Int64Gauge
}

func (w *resealing) instruments() (err error) {
	w.resealed, err = w.Meter.Int64Counter("renewd.grants.resealed", metric.WithUnit("{grant}"),
		metric.WithDescription("Records whose tokens were re-sealed: their key is an old one, or "+
			"they were not bound."))
	if err != nil {
		return err
	}
	w.left, err = w.Meter.Int64Gauge("renewd.grants.old_key", metric.WithUnit("{grant}"),
		metric.WithDescription("Records that the last walk for it left sealed with an old key."))
	if err != nil {
		return err
	}
	w.unbound, err = w.Meter.Int64Gauge("renewd.grants.unbound", metric.WithUnit("{grant}"),
		metric.WithDescription("Records that the last walk left as a version before wrote them, "+
			"not bound to their tokens."))
	return err
}

// turn does the walk if a walk is due and no other worker has the lease.
func (w *resealing) turn(ctx context.Context) error {
	old := w.Old()
	lease, err := take(ctx, w.Engine, leaseResealing, w.Holder, w.Lease, func(l leaseRecord) bool {
		return slices.ContainsFunc(old, func(id string) bool { return !slices.Contains(l.Old, id) })
	})
	if err != nil {
		return err
	}
	if len(old) == 0 {
		lease.Left = 0
	}
	w.record(ctx, lease)
	if lease.Holder != w.Holder {
		return nil
	}
	found, err := w.walk(ctx, lease, old)
	if err != nil {
		return err
	}
	lease.Old, lease.Left, lease.Unbound = old, found.Left, found.Unbound
	if err := lease.release(ctx, w.pause(old, found)); err != nil {
		return err
	}
	w.record(ctx, lease)
	if found.Sealed > 0 {
		w.Logger.InfoContext(ctx, "re-sealed records whose key is an old one, or that were "+
			"not bound",
			"sealed", found.Sealed, "left", found.Left, "unbound", found.Unbound)
	}
	if w.OnWalk != nil {
		w.OnWalk(found)
	}
	return nil
}

func (w *resealing) record(ctx context.Context, l *lease) {
	w.left.Record(ctx, int64(l.Left))
	w.unbound.Record(ctx, int64(l.Unbound))
}

// pause is the wait before the next walk.
func (w *resealing) pause(old []string, found Resealed) time.Duration {
	switch {
	case found.Left > 0:
		return w.Every
	case len(old) > 0, found.Unbound > 0:
		return w.Rest
	}
	return w.Idle
}

// walk goes over the store once. A record written meanwhile may be met twice.
func (w *resealing) walk(ctx context.Context, l *lease, old []string) (found Resealed, _ error) {
	for cursor := ""; ; {
		page, next, err := w.Store.ListSealed(ctx, cursor, w.Page)
		if err != nil {
			return found, fmt.Errorf("list grants: %w", err)
		}
		for _, s := range page {
			if err := w.look(ctx, l, s, old, &found); err != nil {
				return found, err
			}
		}
		if next == "" {
			return found, nil
		}
		cursor = next
		if err := l.extend(ctx); err != nil {
			return found, err
		}
		if err := rest(ctx, w.Pause); err != nil {
			return found, err
		}
	}
}

// look seals a record again if the record needs it, and counts the result.
func (w *resealing) look(
	ctx context.Context, l *lease, s grant.Sealed, old []string, found *Resealed,
) error {
	leaves := slices.Contains(old, w.KeyOf(s.Head))
	if s.Bound && !leaves {
		return nil
	}
	done, err := w.reseal(ctx, l, s)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil
	case err != nil:
		return err
	case done:
		found.Sealed++
		return nil
	}
	if leaves {
		found.Left++
	}
	if !s.Bound {
		found.Unbound++
	}
	return nil
}

// reseal seals one record again, at the listed revision: with another revision the record may be in
// use by now.
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
		return false, nil // another worker wrote the record, or no worker can open it
	case errors.Is(err, grant.ErrRefused):
		w.Logger.WarnContext(ctx, "the store refuses a record that is re-sealed",
			"grant", s.Key, "error", err)
		return false, nil
	case err != nil:
		return false, err
	}
	w.resealed.Add(ctx, 1, metric.WithAttributes(attribute.String("provider", s.Provider)))
	return true, nil
}

const (
	// lookBefore is how long before its due time a record is left to the worker that looks at the
	// grant.
	lookBefore = time.Minute
	// lookAfter is how long this worker has, and how long a worker has whose claim ran out. A
	// record that waits for longer waits for a provider that is away, or gone from the settings.
	lookAfter = 10 * time.Minute
)

// inUse reports whether a worker has the record, or is about to look at the record and so to seal
// it again.
func inUse(d grant.Due, now time.Time) bool {
	if !d.ClaimedUntil.IsZero() && now.Before(d.ClaimedUntil.Add(lookAfter)) {
		return true
	}
	return !d.At.IsZero() && now.After(d.At.Add(-lookBefore)) && now.Before(d.At.Add(lookAfter))
}
