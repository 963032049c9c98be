package stream

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Reconciler repairs timers that got lost: it walks the store slowly, wakes live grants that are overdue, and after a loss
// of RENEWALS arms them all anew. Any number of workers run one; a lease lets one of them walk at a time.
//
// The zero value of a field but Store and Engine stands for its default. Do not change a field after Run was called.
type Reconciler struct {
	Store  grant.Store
	Engine *Engine
	// Holder names this process in the lease. Default a random text.
	Holder string
	// Every is the pause between the end of a walk and the next one. Default 1 min.
	Every time.Duration
	// Poll is how often a worker looks whether a walk is due. Default 15 s.
	Poll time.Duration
	// Lease is how long a walker that died keeps the others waiting. Default 30 s.
	Lease time.Duration
	// Overdue is how late a grant may be before it is woken. Default 60 s.
	Overdue time.Duration
	// Page is how many grants one ListDue asks for, Pause the wait between two of them. Defaults 500, 100 ms; a negative
	// Pause means none.
	Page  int
	Pause time.Duration
	// WakesPerSecond spreads the wakes. Default 1000.
	WakesPerSecond float64
	// OnWalk, if set, is told of each walk that this worker finished.
	OnWalk func(Walk)
	// Meter gets the counter and the gauges, Logger what went wrong. Default none.
	Meter  metric.Meter
	Logger *slog.Logger
}

// Walk is what one walk over the store found and did.
type Walk struct {
	Live     int `json:"live"`     // live grants
	Overdue  int `json:"overdue"`  // of them, late by more than Reconciler.Overdue and in nobody's hand
	Woken    int `json:"woken"`    // of them, woken
	Armed    int `json:"armed"`    // timers set anew, because RENEWALS had been lost
	Parked   int `json:"parked"`   // pairs that wait in PARKED for longer than Reconciler.Overdue
	Unparked int `json:"unparked"` // pairs removed from there, because the store has a newer one
}

func (r Reconciler) withDefaults() Reconciler {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&r.Every, time.Minute)
	set(&r.Poll, 15*time.Second)
	set(&r.Lease, 30*time.Second)
	set(&r.Overdue, 60*time.Second)
	set(&r.Pause, 100*time.Millisecond)
	if r.Holder == "" {
		r.Holder = rand.Text()
	}
	if r.Page == 0 {
		r.Page = 500
	}
	if r.WakesPerSecond == 0 {
		r.WakesPerSecond = 1000
	}
	if r.Meter == nil {
		r.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	return r
}

// Run walks until ctx ends. What goes wrong is logged and tried again with the next walk; its error is about the meter only.
func (r Reconciler) Run(ctx context.Context) error {
	r = r.withDefaults()
	w := &walker{Reconciler: r, wakes: rate.NewLimiter(rate.Limit(r.WakesPerSecond), max(1, int(r.WakesPerSecond/10)))}
	if err := w.instruments(); err != nil {
		return fmt.Errorf("reconciler: register metrics: %w", err)
	}
	poll := time.NewTicker(r.Poll)
	defer poll.Stop()
	for {
		if err := w.turn(ctx); err != nil && ctx.Err() == nil {
			r.Logger.WarnContext(ctx, "reconciler stopped before the end of its walk; it will try again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
}

// walker is one Run.
type walker struct {
	Reconciler
	wakes    *rate.Limiter
	repaired metric.Int64Counter
	grants   metric.Int64Gauge
	overdue  metric.Int64Gauge
}

func (w *walker) instruments() (err error) {
	if w.repaired, err = w.Meter.Int64Counter("renewd.reconciler.repaired", metric.WithUnit("{grant}"),
		metric.WithDescription("Timers that were lost and set anew. It must be 0.")); err != nil {
		return err
	}
	if w.grants, err = w.Meter.Int64Gauge("renewd.grants.live", metric.WithUnit("{grant}"),
		metric.WithDescription("Live grants, as the last walk over the store counted them.")); err != nil {
		return err
	}
	w.overdue, err = w.Meter.Int64Gauge("renewd.grants.overdue", metric.WithUnit("{grant}"),
		metric.WithDescription("Live grants that the last walk found late and in nobody's hand."))
	return err
}

// turn does the walk if one is due and nobody else has the lease.
func (w *walker) turn(ctx context.Context) error {
	lease, err := w.take(ctx)
	if err != nil {
		return err
	}
	w.grants.Record(ctx, int64(lease.Last.Live))
	w.overdue.Record(ctx, int64(lease.Last.Overdue))
	if lease.Holder != w.Holder {
		return nil
	}
	rebuild, created, err := w.lost(ctx, lease)
	if err != nil {
		return err
	}
	if rebuild {
		w.Logger.InfoContext(ctx, "timers are fewer than live grants, or the stream is new: arming every live grant anew")
	}
	walk, err := w.walk(ctx, lease, rebuild)
	if err != nil {
		return err
	}
	if rebuild && walk.Live > 0 {
		if n, err := w.Engine.outcomes(ctx); err == nil && n == 0 {
			w.Logger.WarnContext(ctx, "the streams are new and hold no outcomes: if the store was restored from a backup, nothing tells which of its refresh tokens are superseded")
		}
	}
	lease.Last, lease.Created = walk, created
	if err := w.release(ctx, lease); err != nil {
		return err
	}
	w.grants.Record(ctx, int64(walk.Live))
	w.overdue.Record(ctx, int64(walk.Overdue))
	if w.OnWalk != nil {
		w.OnWalk(walk)
	}
	return nil
}

// lost reports whether RENEWALS is another stream than at the last walk, or holds fewer than half the messages that the
// live grants of then should have there.
func (w *walker) lost(ctx context.Context, l *lease) (rebuild bool, created time.Time, err error) {
	name := w.Engine.config.Subjects.Name(Renewals)
	s, err := w.Engine.js.Stream(ctx, name)
	if err != nil {
		return false, time.Time{}, fmt.Errorf("look at stream %s: %w", name, err)
	}
	info := s.CachedInfo()
	return !info.Created.Equal(l.Created) || 2*info.State.Msgs < uint64(l.Last.Live), info.Created, nil
}

func (w *walker) walk(ctx context.Context, l *lease, rebuild bool) (Walk, error) {
	var walk Walk
	for cursor := ""; ; {
		page, next, err := w.Store.ListDue(ctx, cursor, w.Page)
		if err != nil {
			return walk, fmt.Errorf("list grants: %w", err)
		}
		if err := w.page(ctx, page, rebuild, &walk); err != nil {
			return walk, err
		}
		if next == "" {
			return walk, w.parked(ctx, &walk)
		}
		cursor = next
		if err := w.extend(ctx, l); err != nil {
			return walk, err
		}
		if err := wait(ctx, w.Pause); err != nil {
			return walk, err
		}
	}
}

// armsInFlight is how many grants of a page are repaired at the same time.
const armsInFlight = 256

func (w *walker) page(ctx context.Context, page []grant.Due, rebuild bool, walk *Walk) error {
	now := w.Engine.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(armsInFlight)
	for _, d := range page {
		if d.Status != grant.Live {
			continue
		}
		walk.Live++
		if d.At.IsZero() { // waits for a login or an operator
			continue
		}
		switch late := now.Sub(d.At) > w.Overdue; {
		case d.ClaimedUntil.After(now): // its worker arms the next timer
		case late:
			walk.Overdue++
			walk.Woken++
			group.Go(func() error { return w.wake(ctx, d) })
		case rebuild:
			walk.Armed++
			group.Go(func() error { return w.arm(ctx, d) })
		}
	}
	return group.Wait()
}

func (w *walker) wake(ctx context.Context, d grant.Due) error {
	if err := w.wakes.Wait(ctx); err != nil {
		return err
	}
	if err := w.Engine.Wake(ctx, d.Key, repair(d)); err != nil {
		return err
	}
	w.repaired.Add(ctx, 1, metric.WithAttributes(attribute.String("provider", d.Provider), attribute.String("by", "wake")))
	return nil
}

// arm may put back a timer that a worker has just moved: the grant is then looked at once too early, and armed again.
func (w *walker) arm(ctx context.Context, d grant.Due) error {
	if err := w.Engine.Arm(ctx, d.Key, d.At, repair(d)); err != nil {
		return err
	}
	w.repaired.Add(ctx, 1, metric.WithAttributes(attribute.String("provider", d.Provider), attribute.String("by", "arm")))
	return nil
}

// repair is the work of a lost timer. Its id is the same however often and wherever the loss is seen, so that the renewal
// has one outcome.
func repair(d grant.Due) grant.Work {
	sum := sha256.Sum256(fmt.Appendf(nil, "renewd repair\x00%s\x00%s\x00%d\x00%d", d.Provider, d.User, d.Version, d.At.UnixMilli()))
	return grant.Work{Cause: schema.Cause{
		ID: "repair-" + base64.RawURLEncoding.EncodeToString(sum[:16]), Type: schema.CauseRepair, Time: d.At.UTC(), Reason: "timer lost",
	}}
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var errLeaseLost = errors.New("another worker took the reconciler's lease")
