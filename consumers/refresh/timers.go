package refresh

import (
	"context"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
)

// timers sets the grant's next timer. A worker that has lost the lease leaves the timer to the
// worker that has the message now.
type timers struct {
	*job
	record *record
}

// arm sets the next timer of a grant, or of its candidate, whichever comes first. While the cause
// has no answer the timer carries the cause on. ok is false, without an error, if the user was
// erased.
func (t *timers) arm(ctx context.Context, g *grant.Grant, answered bool) (ok bool, _ error) {
	stored := g.AsStored()
	due := stored.Due().At
	if due.IsZero() || stored.Status == grant.Forgotten {
		return true, nil
	}
	if ok, err := t.record.stillThere(ctx); !ok || err != nil {
		return false, err
	}
	if !t.m.Held() {
		return false, retry(runner.ErrLeaseLost)
	}
	now, policy := t.Now(), &t.provider.Policy
	if every := policy.ProfileEvery; every > 0 && answered && stored.Status == grant.Live {
		due = earlier(due, policy.Within(now.Add(every), t.Rand()))
	}
	if floor := now.Add(policy.Floor); due.Before(floor) {
		due = floor // never as fast as timers fire
	}
	work := t.work
	work.Mark, work.Deferrals = stored.Mark(), 0
	work = work.PutOff(due)
	if answered {
		work = stored.NextTimer(due)
	}
	if err := t.Timers.Arm(ctx, t.key, due, work); err != nil {
		return false, retry(err)
	}
	return true, nil
}

// postpone has the work done after the wait, spread so that not all work comes at once.
func (t *timers) postpone(ctx context.Context, wait time.Duration) error {
	spread := time.Duration(t.Rand() * float64(min(wait, 30*time.Second)))
	if !t.m.Held() {
		return retry(runner.ErrLeaseLost)
	}
	at := t.Now().Add(wait + spread)
	if err := t.Timers.Arm(ctx, t.key, at, t.work.PutOff(at)); err != nil {
		return retry(err)
	}
	return nil
}
