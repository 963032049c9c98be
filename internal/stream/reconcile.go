package stream

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Reconciler repairs timers that got lost: it walks the store slowly, wakes grants that are late
// and for which nothing waits any more, and after a loss of RENEWALS arms them all anew. It
// replaces nothing that waits: a timer set for a provider that asked for patience, or a renewal
// behind a pause, is no loss. It also looks after pairs that were parked, and removes what erasures
// left behind once its time is over. Any number of workers run one; a lease lets one of them walk
// at a time.
//
// The zero value of a field but Store and Engine stands for its default. Do not change a field
// after Run was called.
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
	// Overdue is how late a grant may be before it is woken, and how long a parcel may wait.
	// Default 60 s.
	Overdue time.Duration
	// ParkedEvery is how often PARKED is looked at, also while a walk takes longer. Default 1 min.
	ParkedEvery time.Duration
	// Page is how many grants one ListDue asks for, Pause the wait between two of them. Defaults
	// 500, 100 ms; a negative Pause means none, as for a walk that arms every grant.
	Page  int
	Pause time.Duration
	// WakesPerSecond spreads the wakes, but for those of a walk that arms every grant. Default
	// 1000.
	WakesPerSecond float64
	// OnWalk, if set, is told of each walk that this worker finished.
	OnWalk func(Walk)
	// Meter gets the counter and the gauges, Logger what went wrong. Default none.
	Meter  metric.Meter
	Logger *slog.Logger
}

// Walk is what one walk over the store found and did.
type Walk struct {
	Live int `json:"live"` // live grants
	// Due counts the grants that have a time to be looked at: each should have a message in
	// RENEWALS. Beyond some 65,000 Live and Due are estimates.
	Due     int `json:"due"`
	Overdue int `json:"overdue"` // of them, late by more than Reconciler.Overdue and in nobody's hand
	Woken   int `json:"woken"`   // of them, woken: nothing waited for them
	Fired   int `json:"fired"`   // of them, with a timer that should have fired long ago, and was made to
	Armed   int `json:"armed"`   // timers set anew, because RENEWALS had been lost
	Expired int `json:"expired"` // records removed that erasures had left, and whose time was over

	Parked   int `json:"parked"`   // pairs that wait in PARKED for longer than Reconciler.Overdue
	Unparked int `json:"unparked"` // pairs removed from there, because the store has a newer one
	Foreign  int `json:"foreign"`  // messages there that are none of renewd's, or whose record cannot be read
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

// Run walks until ctx ends. What goes wrong is logged and tried again with the next walk; its error
// is about the meter only.
func (r Reconciler) Run(ctx context.Context) error {
	r = r.withDefaults()
	w := &walker{Reconciler: r, wakes: rate.NewLimiter(rate.Limit(r.WakesPerSecond), max(1, int(r.WakesPerSecond/10)))}
	if err := w.instruments(); err != nil {
		return fmt.Errorf("reconciler: register metrics: %w", err)
	}
	pollTurns(ctx, r.Poll, w.turn, func(err error) {
		r.Logger.WarnContext(ctx, "reconciler stopped before the end of its walk; it will try again", "error", err)
	})
	return nil
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
		metric.WithDescription("Grants for which nothing waited any more, and that were brought back. It must be 0.")); err != nil {
		return err
	}
	if w.grants, err = w.Meter.Int64Gauge("renewd.grants.live", metric.WithUnit("{grant}"),
		metric.WithDescription("Live grants, as the last walk over the store counted them.")); err != nil {
		return err
	}
	w.overdue, err = w.Meter.Int64Gauge("renewd.grants.overdue", metric.WithUnit("{grant}"),
		metric.WithDescription("Grants that the last walk found late and in nobody's hand."))
	return err
}

// turn does the walk if one is due and nobody else has the lease.
func (w *walker) turn(ctx context.Context) error {
	lease, err := w.Engine.take(ctx, leaseKey, w.Holder, w.Lease, nil)
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
		w.Logger.InfoContext(ctx, "too few timers for the grants, or a new stream: arming every grant anew")
	}
	walk, stuck, err := w.walk(ctx, lease, rebuild)
	if err != nil {
		return err
	}
	if rebuild && walk.Live > 0 {
		if n, err := w.Engine.outcomes(ctx); err == nil && n == 0 {
			w.Logger.WarnContext(ctx, "the streams are new and hold no outcomes: if the store was restored from a backup, nothing tells which of its refresh tokens are superseded")
		}
	}
	lease.Last, lease.Created, lease.Stuck = walk, created, stuck
	if err := lease.release(ctx, w.Every); err != nil {
		return err
	}
	w.grants.Record(ctx, int64(walk.Live))
	w.overdue.Record(ctx, int64(walk.Overdue))
	if w.OnWalk != nil {
		w.OnWalk(walk)
	}
	return nil
}

// lost reports whether RENEWALS is another stream than at the last walk, or holds fewer than half
// the messages that the grants of then should have there. Logins put off are none of them.
func (w *walker) lost(ctx context.Context, l *lease) (rebuild bool, created time.Time, err error) {
	name := w.Engine.config.Subjects.Name(Renewals)
	s, err := w.Engine.js.Stream(ctx, name)
	if err != nil {
		return false, time.Time{}, fmt.Errorf("look at stream %s: %w", name, err)
	}
	deferred, err := w.Engine.deferredCount(ctx)
	if err != nil {
		return false, time.Time{}, err
	}
	info := s.CachedInfo()
	messages := info.State.Msgs - min(info.State.Msgs, deferred)
	return !info.Created.Equal(l.Created) || 2*messages < uint64(l.Last.Due), info.Created, nil
}

// walk goes over the store once. It begins with PARKED, where pairs wait that a provider may not
// give again, and comes back to it each ParkedEvery. What is wrong with PARKED does not keep it
// from the store.
func (w *walker) walk(ctx context.Context, l *lease, rebuild bool) (found Walk, stuck map[string]uint64, _ error) {
	x := &walking{
		walker: w, rebuild: rebuild, live: newDistinct(), due: newDistinct(), before: l.Stuck, stuck: map[string]uint64{}, floors: map[string]uint64{},
	}
	pause := w.Pause
	if rebuild {
		pause = 0
	}
	looked := x.lookAtParked(ctx)
	for cursor := ""; ; {
		page, next, err := w.Store.ListDue(ctx, cursor, w.Page)
		if err != nil {
			return x.found, nil, fmt.Errorf("list grants: %w", err)
		}
		if err := x.page(ctx, page); err != nil {
			return x.found, nil, err
		}
		if next == "" {
			break
		}
		cursor = next
		if err := l.extend(ctx); err != nil {
			return x.found, nil, err
		}
		if time.Since(looked) >= w.ParkedEvery {
			looked = x.lookAtParked(ctx)
		}
		if err := wait(ctx, pause); err != nil {
			return x.found, nil, err
		}
	}
	x.found.Live, x.found.Due = x.live.count(), x.due.count()
	return x.found, x.stuck, nil
}

// lookAtParked returns when it began. It is tried again with the next look.
func (x *walking) lookAtParked(ctx context.Context) time.Time {
	began := time.Now()
	if err := x.parked(ctx); err != nil && ctx.Err() == nil {
		x.Logger.WarnContext(ctx, "cannot look at all pairs that are parked", "error", err)
	}
	return began
}

// walking is one walk.
type walking struct {
	*walker
	rebuild   bool
	live, due *distinct

	mu sync.Mutex
	// before and stuck are what the last walk and this one found that stands in RENEWALS though its
	// time is over, by grant and sequence.
	before, stuck map[string]uint64
	floors        map[string]uint64 // up to where all of a provider was acknowledged
	found         Walk
}

// count adds one to a number of the walk; safe for concurrent use.
func (x *walking) count(n *int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	*n++
}

// armsInFlight is how many grants of a page are looked at, or repaired, at the same time.
const armsInFlight = 256

func (x *walking) page(ctx context.Context, page []grant.Due) error {
	now := x.Engine.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(armsInFlight)
	for _, d := range page {
		if d.Status == grant.Live {
			x.live.add(d.Key)
		}
		if d.At.IsZero() || checkKey(d.Key) != nil { // waits for a login or an operator; or is no key of renewd's
			continue
		}
		if d.Status == grant.Forgotten {
			if d.At.Before(now) {
				group.Go(func() error { return x.expire(ctx, d.Key) })
			}
			continue
		}
		x.due.add(d.Key)
		switch late := now.Sub(d.At) > x.Overdue; {
		case d.ClaimedUntil.After(now): // its worker arms the next timer
		case late:
			x.count(&x.found.Overdue)
			group.Go(func() error { return x.late(ctx, d) })
		case x.rebuild:
			group.Go(func() error { return x.arm(ctx, d) })
		}
	}
	return group.Wait()
}

// late sees to a grant that should have been looked at long ago. If it is due already it waits for
// its turn, behind a pause or a backlog; if it has a timer, somebody put it off. Only what should
// have fired, or been delivered, and what the last walk found like that too, has the server
// forgotten.
func (x *walking) late(ctx context.Context, d grant.Due) error {
	timer, due, err := x.Engine.waits(ctx, d.Key)
	switch {
	case err != nil:
		return fmt.Errorf("look whether %s waits: %w", d.Key, err)
	case len(due) > 0:
		return x.undelivered(ctx, d, due)
	case !timer.ours, // none, or somebody else's
		x.outdated(timer, d): // the one that was set since, or a wake, is lost
		return x.repair(ctx, d, "wake", &x.found.Woken, func() (bool, error) {
			return x.Engine.wakeLost(ctx, d.Key, repair(d))
		})
	case x.Engine.Now().Sub(timer.At) <= x.Overdue:
		return nil
	}
	if !x.again(d.Key, timer.sequence) {
		return nil
	}
	return x.putAgain(ctx, d, "fire", timer)
}

// putAgain is a repair of what stands. A server that refuses this one message must not end the walk.
func (x *walking) putAgain(ctx context.Context, d grant.Due, by string, s standing) error {
	return x.repair(ctx, d, by, &x.found.Fired, func() (bool, error) {
		done, err := x.Engine.putAgain(ctx, s)
		if refusal, ok := errors.AsType[*jetstream.APIError](err); ok {
			x.Logger.WarnContext(ctx, "the server refuses to take up again what it has forgotten", "subject", s.subject, "error", refusal)
			return false, nil
		}
		return done, err
	})
}

// undelivered sees to what is due and lies below the place up to which all is acknowledged: the
// server will not deliver it any more.
func (x *walking) undelivered(ctx context.Context, d grant.Due, due []standing) error {
	floor, err := x.floor(ctx, d.Provider)
	if err != nil {
		return err
	}
	for _, s := range due {
		if !s.ours || s.sequence > floor || !x.again(d.Key, s.sequence) {
			continue
		}
		if err := x.putAgain(ctx, d, "deliver", s.fired()); err != nil {
			return err
		}
	}
	return nil
}

// floor is up to where all of a provider's renewals are acknowledged, at some time of this walk: one
// read each.
func (x *walking) floor(ctx context.Context, provider string) (uint64, error) {
	x.mu.Lock()
	floor, known := x.floors[provider]
	x.mu.Unlock()
	if known {
		return floor, nil
	}
	c, err := x.Engine.js.Consumer(ctx, x.Engine.config.Subjects.Name(Renewals), ConsumerRenew(provider))
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound): // no longer in the settings
	case err != nil:
		return 0, fmt.Errorf("look how far %s is: %w", ConsumerRenew(provider), err)
	default:
		floor = c.CachedInfo().AckFloor.Stream
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.floors[provider] = floor
	return floor, nil
}

// again reports whether the last walk found the same, and else notes it for the next one.
func (x *walking) again(k grant.Key, sequence uint64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	name := k.Provider + "/" + schema.EscapeUser(k.User)
	if x.before[name] == sequence {
		return true
	}
	if len(x.stuck) < stuckAtMost {
		x.stuck[name] = sequence
	}
	return false
}

// outdated reports whether a timer is of before the record was due, and nobody put it off.
func (x *walking) outdated(timer standing, d grant.Due) bool {
	w := timer.Work
	return w.Mark.Version < d.Version && !grant.IsCommand(w.Cause) && w.Deferrals == 0 && timer.At.Sub(d.At) > x.Overdue
}

// stuckAtMost bounds what one walk leaves to the next, in the lease: 100 KB at the most.
const stuckAtMost = 1000

// repair does what brings a lost grant back, and counts it if there was anything to do.
func (x *walking) repair(ctx context.Context, d grant.Due, by string, n *int, do func() (done bool, err error)) error {
	if !x.rebuild {
		if err := x.wakes.Wait(ctx); err != nil {
			return err
		}
	}
	done, err := do()
	if !done || err != nil {
		return err
	}
	x.count(n)
	at := metric.WithAttributes(attribute.String("provider", d.Provider), attribute.String("by", by))
	x.repaired.Add(ctx, 1, at)
	return nil
}

// arm may put back a timer that a worker has just moved: the grant is then looked at once too
// early, and armed again.
func (x *walking) arm(ctx context.Context, d grant.Due) error {
	return x.repair(ctx, d, "arm", &x.found.Armed, func() (bool, error) {
		err := x.Engine.Arm(ctx, d.Key, d.At, repair(d))
		return err == nil, err
	})
}

// expire removes the record that an erasure left, and what its removal leaves.
func (x *walking) expire(ctx context.Context, k grant.Key) error {
	g, err := x.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil
	case err != nil && !errors.Is(err, grant.ErrUnreadable):
		return fmt.Errorf("look at what an erasure left: %w", err)
	case g.Status != grant.Forgotten || g.NextDueAt.IsZero() || x.Engine.Now().Before(g.NextDueAt):
		return nil // a login came in between, or the record does not say
	}
	switch err := x.Store.Delete(ctx, k, g.Revision); {
	case errors.Is(err, grant.ErrConflict), errors.Is(err, grant.ErrNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("remove what an erasure left: %w", err)
	}
	x.count(&x.found.Expired)
	return x.Engine.eraseMark(ctx, k)
}

// repair is the work of a lost timer. Its id is the same however often and wherever the loss is
// seen, so that the renewal has one outcome.
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
