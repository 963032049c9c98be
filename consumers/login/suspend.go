package login

import (
	"context"
	"errors"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// suspend has a grant rest until a resume or a newer login. Its error is a verdict of package
// runner.
func (c *Consumer) suspend(ctx context.Context, a arrived) error {
	e, err := c.accepted(ctx, a)
	if err != nil {
		return runner.Refused(err)
	}
	d, err := schema.Data[schema.Suspend](e)
	if err != nil {
		return runner.Refused(err)
	}
	return c.verdict(ctx, a, c.hold(ctx, c.command(a, e, d.Reason), holding{
		ready: c.comesNext, change: grant.Grant.SuspendedBy, then: c.told,
	}))
}

// resume ends a suspension; the renewal it wakes answers the command. resume ends no login, so it
// takes out no deferred login and waits for none. Its error is a verdict of package runner.
func (c *Consumer) resume(ctx context.Context, a arrived) error {
	e, err := c.accepted(ctx, a)
	if err != nil {
		return runner.Refused(err)
	}
	d, err := schema.Data[schema.Resume](e)
	if err != nil {
		return runner.Refused(err)
	}
	return c.verdict(ctx, a, c.hold(ctx, c.command(a, e, d.Reason), holding{
		ready: c.published, change: grant.Grant.ResumedBy, then: c.woken,
	}))
}

// holding holds the differences between a suspension and its end.
type holding struct {
	// ready has the command know the marks of the record, once the command may be carried out.
	ready func(context.Context, *command) (upTo grant.Mark, err error)
	// change makes the state asked for by the command.
	change func(grant.Grant, grant.Turn, grant.Position) grant.Grant
	// then has the stored state told.
	then func(context.Context, command, grant.Grant, grant.Mark) error
}

// hold takes the user's record to the state asked for by the command.
func (c *Consumer) hold(ctx context.Context, l command, as holding) error {
	if repeat, err := c.repeats(ctx, l, (*grant.Grant).HoldArrives); repeat || err != nil {
		return err
	}
	upTo, err := as.ready(ctx, &l)
	if err != nil {
		return err
	}
	for {
		g, readable, err := c.stored(ctx, l)
		switch {
		case errors.Is(err, grant.ErrNotFound) || err == nil && g.Status == grant.Forgotten:
			return c.answer(ctx, l, schema.ReasonUnknownGrant)
		case err != nil:
			return err
		case !readable: // not renewed or handed out as it is, and perhaps readable later
			return c.answer(ctx, l, schema.ReasonUnreadable)
		}
		switch g.HoldArrives(l.position) {
		case grant.Outdated:
			return nil // the outcome of the newer command answers this command
		case grant.Stored:
			return as.then(ctx, l, g, upTo)
		}
		if again, err := c.again(ctx, l); again || err != nil {
			return err
		}
		if g.Claim != nil && g.Claim.Until.After(c.c.Now()) && c.waited(l) < revokeWait {
			return errInUse // once the suspension is told, no token is presented any more
		}
		if !l.m.Held() {
			return runner.ErrLeaseLost
		}
		l.turn.Now, l.turn.Told = c.c.Now(), g.ToldAt(upTo)
		next := as.change(g, l.turn, l.position)
		if g.Fingerprint() != "" && upTo.Supersedes(&g) {
			// The store was restored. The new version must not make the token look like the newest.
			next = g.Superseded(l.turn)
			next.Hold = l.position
		}
		next.Revision, err = c.c.Store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) && ctx.Err() == nil {
			continue // also if only the reply of our save was lost: HoldArrives is Stored then
		}
		if err != nil {
			return err
		}
		return as.then(ctx, l, next, upTo)
	}
}

// woken has a grant renewed for the command, whatever its state: the renewal answers the command.
// The mark of the wake is the mark of the published outcomes. The mark of the state just stored
// would count an outcome as published that is not told yet.
func (c *Consumer) woken(ctx context.Context, l command, _ grant.Grant, upTo grant.Mark) error {
	work := grant.Work{
		Cause: l.turn.Work.Cause, Mark: upTo, Again: l.m.Deliveries > 1 || l.deferrals > 0,
	}
	return c.c.Stream.Request(ctx, l.key, work)
}
