package reconcile

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
)

// walk goes over the store once. It begins with PARKED, whose pairs a provider may not give again,
// and comes back to PARKED each ParkedEvery. A fault in PARKED does not keep walk from the store.
func (w *walker) walk(
	ctx context.Context, l *lease, rebuild bool,
) (found Walk, stuck map[string]uint64, _ error) {
	x := &walking{
		walker:  w,
		rebuild: rebuild,
		live:    newDistinct(),
		dormant: newDistinct(),
		due:     newDistinct(),
		before:  l.Stuck,
		stuck:   map[string]uint64{},
		floors:  map[string]uint64{},
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
		if err := rest(ctx, pause); err != nil {
			return x.found, nil, err
		}
	}
	x.found.Live, x.found.Dormant, x.found.Due = x.live.count(), x.dormant.count(), x.due.count()
	return x.found, x.stuck, nil
}

// lookAtParked looks at the parked pairs and returns when the look began. A failed look is tried
// again with the next look.
func (x *walking) lookAtParked(ctx context.Context) time.Time {
	began := time.Now()
	if err := x.parked(ctx); err != nil && ctx.Err() == nil {
		x.Logger.WarnContext(ctx, "cannot look at all pairs that are parked", "error", err)
	}
	return began
}

// walking is the state of one walk.
type walking struct {
	*walker
	rebuild            bool
	live, dormant, due *distinct

	mu sync.Mutex
	// before and stuck are the messages that the last walk and this walk found standing in RENEWALS
	// though their time is over, by grant and sequence.
	before, stuck map[string]uint64
	floors        map[string]uint64 // up to where all renewals of a provider are acknowledged
	found         Walk
}

// count adds 1 to a number of the walk; safe for concurrent use.
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
		switch d.Status {
		case grant.Live:
			x.live.add(d.Key)
		case grant.Dormant:
			x.dormant.add(d.Key)
		}
		// waits for a login or an operator; or is no key of renewd's
		if d.At.IsZero() || d.Check() != nil {
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
		case d.ClaimedUntil.After(now): // the worker with the claim arms the next timer
		case late:
			x.count(&x.found.Overdue)
			group.Go(func() error { return x.late(ctx, d) })
		case x.rebuild:
			group.Go(func() error { return x.arm(ctx, d) })
		}
	}
	return group.Wait()
}

// late sees to a grant that should have been looked at long ago. A grant already due waits for its
// turn, behind a pause or a backlog. A grant with a timer was put off. The server has forgotten a
// message only if the message should have fired, or been delivered, and the last walk found the
// same message.
func (x *walking) late(ctx context.Context, d grant.Due) error {
	timer, due, err := x.Engine.Waits(ctx, d.Key)
	switch {
	case err != nil:
		return fmt.Errorf("look whether %s waits: %w", d.Key, err)
	case len(due) > 0:
		return x.undelivered(ctx, d, due)
	case !timer.Ours, // no timer, or another writer's message
		x.outdated(timer, d): // the later timer, or a wake, is lost
		return x.repair(ctx, d, "wake", &x.found.Woken, func() (bool, error) {
			return x.Engine.WakeLost(ctx, d.Key, repair(d))
		})
	case x.Engine.Now().Sub(timer.At) <= x.Overdue:
		return nil
	}
	if !x.again(d.Key, timer.Sequence) {
		return nil
	}
	return x.putAgain(ctx, d, "fire", timer)
}

// putAgain repairs the message on a subject. A server that refuses this message must not end the
// walk.
func (x *walking) putAgain(ctx context.Context, d grant.Due, by string, s stream.Standing) error {
	return x.repair(ctx, d, by, &x.found.Fired, func() (bool, error) {
		done, err := x.Engine.PutAgain(ctx, s)
		if refusal, ok := errors.AsType[*jetstream.APIError](err); ok {
			x.Logger.WarnContext(ctx, "the server refuses to take up again what it has forgotten",
				"subject", s.Subject, "error", refusal)
			return false, nil
		}
		return done, err
	})
}

// undelivered sees to due messages up to the sequence where all renewals are acknowledged: the
// server will not deliver these messages any more.
func (x *walking) undelivered(ctx context.Context, d grant.Due, due []stream.Standing) error {
	floor, err := x.floor(ctx, d.Provider)
	if err != nil {
		return err
	}
	for _, s := range due {
		if !s.Ours || s.Sequence > floor || !x.again(d.Key, s.Sequence) {
			continue
		}
		if err := x.putAgain(ctx, d, "deliver", s.Fired()); err != nil {
			return err
		}
	}
	return nil
}

// floor is the sequence up to which all of a provider's renewals are acknowledged, at some time of
// this walk. floor takes one read for each provider.
func (x *walking) floor(ctx context.Context, provider string) (uint64, error) {
	x.mu.Lock()
	known, ok := x.floors[provider]
	x.mu.Unlock()
	if ok {
		return known, nil
	}
	floor, err := x.Engine.AckFloor(ctx, provider)
	if err != nil {
		return 0, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.floors[provider] = floor
	return floor, nil
}

// again reports whether the last walk found the same message, and otherwise notes the message for
// the next walk.
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

// outdated reports whether a timer is older than the record, fires long after the record is due,
// and is neither a command's nor put off.
func (x *walking) outdated(timer stream.Standing, d grant.Due) bool {
	w := timer.Work
	return w.Mark.Version < d.Version && !grant.IsCommand(w.Cause) && w.Deferrals == 0 &&
		timer.At.Sub(d.At) > x.Overdue
}

// stuckAtMost bounds the messages noted by one walk for the next, in the lease: 100 KB at the most.
const stuckAtMost = 1000

// repair calls do, which brings a lost grant back, and counts a repair that was done.
func (x *walking) repair(
	ctx context.Context, d grant.Due, by string, n *int, do func() (done bool, err error),
) error {
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
	at := metric.WithAttributes(attribute.String("provider", d.Provider),
		attribute.String("by", by))
	x.repaired.Add(ctx, 1, at)
	return nil
}

// arm may put back a timer that a worker has just moved. The grant is then looked at once too
// early, and armed again.
func (x *walking) arm(ctx context.Context, d grant.Due) error {
	return x.repair(ctx, d, "arm", &x.found.Armed, func() (bool, error) {
		err := x.Engine.Arm(ctx, d.Key, d.At, repair(d))
		return err == nil, err
	})
}

// expire removes a tombstone, and the mark that the removal leaves in the bucket.
func (x *walking) expire(ctx context.Context, k grant.Key) error {
	g, err := x.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		return nil
	case errors.Is(err, grant.ErrAltered):
		return nil // another writer may have marked the user as erased
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
	return x.Engine.EraseMark(ctx, k)
}

// repair is the work of a lost timer. Its id is the same however often and wherever the loss is
// seen, so the renewal has one outcome.
func repair(d grant.Due) grant.Work {
	sum := sha256.Sum256(fmt.Appendf(nil, "renewd repair\x00%s\x00%s\x00%d\x00%d", d.Provider,
		d.User, d.Version, d.At.UnixMilli()))
	return grant.Work{Cause: schema.Cause{
		ID:     "repair-" + base64.RawURLEncoding.EncodeToString(sum[:16]),
		Type:   schema.CauseRepair,
		Time:   d.At.UTC(),
		Reason: "timer lost",
	}}
}

// rest waits for d, not at all for zero or less, or until ctx ends.
func rest(ctx context.Context, d time.Duration) error {
	over, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-over.Done()
	return context.Cause(ctx)
}
