package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// known is how long after a message was stored its outcome is surely within the stream's duplicate
// window.
const known = time.Minute

// publish stores an outcome once. The stream drops a second one of the same id within its duplicate
// window; for a redelivery, a message that is old, or work that was put off or met before, the
// user's last outcomes are looked at. Whoever has lost the lease publishes nothing: the message is
// somebody else's by now, who finds the outcome in the record or makes it anew, or the user may be
// erased.
func (t *task) publish(ctx context.Context, e schema.Event, m grant.Mark) error {
	old := !t.m.Time.IsZero() && t.Stream.Now().Sub(t.m.Time) > known
	if t.m.Deliveries > 1 || t.resumed || t.met || old || t.given.Again {
		answered, err := t.answered(ctx, e.ID)
		if err != nil {
			return consumers.Retry(err, time.Second)
		}
		if answered {
			return nil
		}
	}
	if err := t.stillThere(ctx); err != nil {
		return err
	}
	if !t.m.Held() {
		return consumers.Retry(consumers.ErrLeaseLost, time.Second)
	}
	if err := t.Stream.PublishMarked(ctx, e, m); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// How far back the answer to a command that was put off is looked for: from when it was published,
// by a clock that may be off, and a day at most.
const (
	publisherSkew = 5 * time.Minute
	longAgo       = 24 * time.Hour
)

// answered reports whether an outcome is stored. Others may have followed that of a command which
// was put off, or whose name a login's wake has, and that of work that was met before.
func (t *task) answered(ctx context.Context, id string) (bool, error) {
	if !grant.IsCommand(t.given.Cause) && !t.met {
		return t.Stream.Answered(ctx, t.key, id)
	}
	now := t.Stream.Now()
	since := earlier(t.given.Cause.Time, now).Add(-publisherSkew)
	if oldest := now.Add(-longAgo); since.Before(oldest) {
		since = oldest
	}
	return t.Stream.AnsweredSince(ctx, t.key, id, since)
}

// glance is how long after the record was seen the user cannot have been erased for good: an
// erasure takes longer.
const glance = time.Second

// stillThere looks again whether the user was erased, if it is some time ago that the record was
// seen: nothing is published of somebody who is gone. An erasure waits for what is in hand, but
// cannot see work whose message was replaced meanwhile.
func (t *task) stillThere(ctx context.Context) error {
	if t.seen.IsZero() || t.Stream.Now().Sub(t.seen) < glance {
		return nil
	}
	g, err := t.Store.Load(ctx, t.key)
	switch {
	case errors.Is(err, grant.ErrNotFound), err == nil && g.Status == grant.Forgotten:
		return errAgain
	case err != nil && !errors.Is(err, grant.ErrUnreadable):
		return consumers.Retry(err, time.Second)
	}
	t.seen = t.Stream.Now()
	return nil
}

// alreadyOut reports whether the outcome which an earlier delivery left in the record was published
// by it.
func (t *task) alreadyOut(ctx context.Context, g grant.Grant) (bool, error) {
	if !t.resumed || g.Pending == nil || g.Pending.Version == 0 {
		return false, nil
	}
	published, err := t.Stream.Published(ctx, t.key)
	if err != nil {
		return false, consumers.Retry(err, time.Second)
	}
	return published.Version >= g.Pending.Version, nil
}

// wasRejected reports whether a login that is asked about was rejected: then it has its answer, and
// only the next timer is missing, which its wake took away.
func (t *task) wasRejected(ctx context.Context, g grant.Grant) (bool, error) {
	cause := t.given.Cause
	if cause.Type != schema.UserLogin || g.AsStored().Awaits(cause) {
		return false, nil
	}
	rejected, err := t.Stream.Answered(ctx, t.key, grant.RejectionID(t.key, cause))
	if err != nil {
		return false, consumers.Retry(err, time.Second)
	}
	if !rejected {
		return false, nil
	}
	return true, t.arm(ctx, g, true)
}

// note remembers that the record's outcome is out if the work's mark proves it: the mark comes from
// a timer, which was set after the outcome of that state was published.
func (t *task) note(g grant.Grant) {
	g = g.AsStored()
	switch {
	case g.Pending == nil:
		return
	case g.Resting():
		t.told = append(t.told, g.Pending.ID) // it rests: see rest
		return
	}
	decided := g.Pending.Version
	if decided == 0 {
		decided = g.Version
	}
	if t.given.Mark.Version >= decided {
		t.told = append(t.told, g.Pending.ID)
	}
}

// tell publishes what was decided for earlier causes and perhaps never published. It comes before
// everything else that is published of the grant: an outcome whose mark is as new as another's, or
// newer, proves that the other one is out.
func (t *task) tell(ctx context.Context, g grant.Grant) error {
	t.note(g)
	untold := g.Untold(t.work.Cause, t.told)
	if len(untold) == 0 {
		return nil
	}
	published, err := t.Stream.Published(ctx, t.key)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	for _, p := range untold {
		out := p.Version > 0 && published.Version >= p.Version // a version of 0: of before records kept it
		if !out {
			// Told before, and decided anew when its message came again.
			if out, err = t.Stream.Answered(ctx, t.key, p.ID); err != nil {
				return consumers.Retry(err, time.Second)
			}
		}
		if !out {
			if err := t.publish(ctx, g.Told(p, t.Source, t.Stream.Now(), t.provider.Policy.Shown), grant.Mark{Version: p.Version, Token: g.Mark().Token}); err != nil {
				return err
			}
		}
		t.told, t.out = append(t.told, p.ID), append(t.out, p.ID)
	}
	return nil
}

// rest notes that nothing more is to be told of a grant that is not renewed: from then on the
// reconciler passes it over.
func (t *task) rest(ctx context.Context, g grant.Grant) (grant.Grant, error) {
	if g = g.AsStored(); g.Status == grant.Live || g.NextDueAt.IsZero() || g.Status == grant.Forgotten {
		return g, nil
	}
	g = g.Rested(t.turn())
	_, err := t.Store.Save(ctx, g)
	if err != nil && !errors.Is(err, grant.ErrConflict) {
		return g, consumers.Retry(err, time.Second)
	}
	return g, nil
}
