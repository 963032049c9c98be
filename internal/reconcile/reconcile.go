package reconcile

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
)

// Reconciler repairs lost timers. It walks the store slowly and wakes late grants for which nothing
// waits any more. After a loss of RENEWALS it arms every grant again. A waiting message is never
// replaced: a timer set for a provider that asked for patience, or a renewal behind a pause, is no
// loss. A Reconciler also looks after parked pairs, and removes tombstones whose time is over. Any
// number of workers may run a Reconciler; a lease lets one worker walk at a time.
//
// The zero value of a field but Store and Engine stands for its default. Do not change a field
// after Run was called.
type Reconciler struct {
	Store  grant.Store
	Engine *stream.Engine
	// Holder names this process in the lease. Default a random text.
	Holder string
	// Every is the pause from the end of a walk to the next walk. Default 1 min.
	Every time.Duration
	// Poll is how often a worker looks whether a walk is due. Default 15 s.
	Poll time.Duration
	// Lease is how long a walker that died keeps the other workers waiting. Default 30 s.
	Lease time.Duration
	// Overdue is how late a grant may be before the Reconciler wakes the grant, and how long a
	// parcel may wait. Default 60 s.
	Overdue time.Duration
	// ParkedEvery is how often PARKED is looked at, also while a walk takes longer. Default 1 min.
	ParkedEvery time.Duration
	// Page is how many grants one ListDue asks for, Pause the wait between two pages. Defaults 500,
	// 100 ms; a negative Pause means no wait, as for a walk that arms every grant.
	Page  int
	Pause time.Duration
	// WakesPerSecond spreads the wakes, but for a walk that arms every grant. Default 1000.
	WakesPerSecond float64
	// OnWalk, if set, is told of each walk finished by this worker.
	OnWalk func(Walk)
	// Meter gets the counter and the gauges, Logger the errors. By default neither is kept.
	Meter  metric.Meter
	Logger *slog.Logger
}

// Walk is the result of one walk over the store.
type Walk struct {
	Live int `json:"live"` // live grants
	// Dormant grants rest until a command or a token read. They have a message in RENEWALS only
	// where their session has an end.
	Dormant int `json:"dormant,omitempty"`
	// Due counts the grants with a due time: each should have a message in RENEWALS. Beyond some
	// 65,000 Live, Dormant and Due are estimates.
	Due     int `json:"due"`
	Overdue int `json:"overdue"` // of Due: late by more than Reconciler.Overdue and not claimed
	Woken   int `json:"woken"`   // of Overdue: woken, as nothing waited for the grant
	// of Overdue: with a message put again that should have fired, or been delivered, long ago
	Fired   int `json:"fired"`
	Armed   int `json:"armed"`   // timers set again, because RENEWALS had been lost
	Expired int `json:"expired"` // tombstones removed, as their time was over

	Parked   int `json:"parked"`   // pairs waiting in PARKED for longer than Reconciler.Overdue
	Unparked int `json:"unparked"` // pairs removed from PARKED: the store has gone on
	// messages in PARKED that are not renewd's, or whose record cannot be read
	Foreign int `json:"foreign"`
}

func (r Reconciler) withDefaults() Reconciler {
	r.Every = cmp.Or(r.Every, time.Minute)
	r.Poll = cmp.Or(r.Poll, 15*time.Second)
	r.Lease = cmp.Or(r.Lease, 30*time.Second)
	r.Overdue = cmp.Or(r.Overdue, 60*time.Second)
	r.ParkedEvery = cmp.Or(r.ParkedEvery, time.Minute)
	r.Pause = cmp.Or(r.Pause, 100*time.Millisecond)
	r.Holder = cmp.Or(r.Holder, rand.Text())
	r.Page = cmp.Or(r.Page, 500)
	r.WakesPerSecond = cmp.Or(r.WakesPerSecond, 1000)
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
func (r Reconciler) Run(ctx context.Context) error {
	r = r.withDefaults()
	w := &walker{
		Reconciler: r,
		wakes:      rate.NewLimiter(rate.Limit(r.WakesPerSecond), max(1, int(r.WakesPerSecond/10))),
	}
	if err := w.instruments(); err != nil {
		return fmt.Errorf("reconciler: register metrics: %w", err)
	}
	pollTurns(ctx, r.Poll, w.turn, func(err error) {
		r.Logger.WarnContext(ctx, "reconciler stopped before the end of its walk; it will "+
			"try again", "error", err)
	})
	return nil
}

// walker is the state of one Run.
type walker struct {
	Reconciler
	wakes    *rate.Limiter
	repaired metric.Int64Counter
	grants   metric.Int64Gauge
	dormant  metric.Int64Gauge
	overdue  metric.Int64Gauge
}

func (w *walker) instruments() (err error) {
	if w.repaired, err = w.Meter.Int64Counter(
		"renewd.reconciler.repaired", metric.WithUnit("{grant}"),
		metric.WithDescription(
			"Grants for which nothing waited any more, and that were brought back. It must be 0.",
		),
	); err != nil {
		return err
	}
	if w.grants, err = w.Meter.Int64Gauge("renewd.grants.live", metric.WithUnit("{grant}"),
		metric.WithDescription(
			"Live grants, as the last walk over the store counted them.",
		)); err != nil {
		return err
	}
	if w.dormant, err = w.Meter.Int64Gauge("renewd.grants.dormant", metric.WithUnit("{grant}"),
		metric.WithDescription("Grants that rest, as the last walk over the store counted them."),
	); err != nil {
		return err
	}
	w.overdue, err = w.Meter.Int64Gauge("renewd.grants.overdue", metric.WithUnit("{grant}"),
		metric.WithDescription("Grants that the last walk found late, and that no worker is "+
			"working on."))
	return err
}

// turn does the walk if a walk is due and no other worker has the lease.
func (w *walker) turn(ctx context.Context) error {
	lease, err := take(ctx, w.Engine, leaseKey, w.Holder, w.Lease, nil)
	if err != nil {
		return err
	}
	w.grants.Record(ctx, int64(lease.Last.Live))
	w.dormant.Record(ctx, int64(lease.Last.Dormant))
	w.overdue.Record(ctx, int64(lease.Last.Overdue))
	if lease.Holder != w.Holder {
		return nil
	}
	rebuild, created, err := w.lost(ctx, lease)
	if err != nil {
		return err
	}
	if rebuild {
		w.Logger.InfoContext(ctx,
			"too few timers for the grants, or a new stream: arming every grant again")
	}
	walk, stuck, err := w.walk(ctx, lease, rebuild)
	if err != nil {
		return err
	}
	if rebuild && walk.Live > 0 {
		if n, err := w.Engine.CountOutcomes(ctx); err == nil && n == 0 {
			w.Logger.WarnContext(ctx,
				"the streams are new and hold no outcomes: if the store was restored from a "+
					"backup, nothing tells which of its refresh tokens are superseded")
		}
	}
	lease.Last, lease.Created, lease.Stuck = walk, created, stuck
	if err := lease.release(ctx, w.Every); err != nil {
		return err
	}
	w.grants.Record(ctx, int64(walk.Live))
	w.dormant.Record(ctx, int64(walk.Dormant))
	w.overdue.Record(ctx, int64(walk.Overdue))
	if w.OnWalk != nil {
		w.OnWalk(walk)
	}
	return nil
}

// lost reports whether RENEWALS is another stream than at the last walk, or holds fewer than half
// the messages that the last walk's grants should have there. Logins put off do not count.
func (w *walker) lost(ctx context.Context, l *lease) (rebuild bool, created time.Time, err error) {
	created, messages, err := w.Engine.CountRenewals(ctx)
	if err != nil {
		return false, time.Time{}, err
	}
	return !created.Equal(l.Created) || 2*messages < uint64(l.Last.Due), created, nil
}
