package refresh

import (
	"context"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// decide chooses the next step. A command that cannot be done is answered here.
func (r *renewal) decide(ctx context.Context, g *grant.Grant) (step, error) {
	*g = g.Resumed(r.turn())
	switch r.decision(g) {
	case grant.Refuse:
		ok, err := r.outcomes.answer(ctx, g.Mark(), g.Refusal())
		return either(ok, rest), err
	case grant.Decline:
		ok, err := r.outcomes.fail(ctx, g.Mark(), schema.ReasonNoRefreshToken)
		return either(ok, rearm), err
	case grant.Suspend:
		return supersede, nil
	case grant.Publish:
		r.outcomes.resumed = true
		return publish, nil
	case grant.SignOut:
		return signOut, nil
	case grant.Sleep:
		return sleep, nil
	case grant.End:
		return end, nil
	case grant.Refresh:
		return claim, nil
	case grant.Sync:
		return profile, nil
	}
	if g.Status == grant.Dormant { // grant.Drop: the grant's timer, if any, is for another time
		return rearm, nil
	}
	return rest, nil
}

// either is the next step if the record is unchanged, else load.
func either(ok bool, next step) step {
	if ok {
		return next
	}
	return load
}

// signOut ends a grant without a refresh token whose access token has ended.
func (r *renewal) signOut(ctx context.Context, g *grant.Grant) (step, error) {
	if g.OnCandidate() {
		const message = "has ended before the provider could be asked whose it is, " +
			"and there is no refresh token"
		return r.unproven("tokens.access_token", message), nil
	}
	if c := g.Candidate; c != nil {
		return r.leaveToLogin(ctx, g, c.NextDueAt)
	}
	if err := r.noLoginWaits(ctx); err != nil {
		return done, err
	}
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if cur.Candidate != nil || r.decision(cur) != grant.SignOut {
			return false
		}
		v := grant.Verdict{Reason: schema.ReasonNoRefreshToken, At: r.Now()}
		*cur = cur.SignedOut(r.turn(), v)
		return true
	})
	return either(ok, publish), err
}

// sleep lets a grant rest that nothing has asked for. Nothing ended, so there is nothing to tell.
func (r *renewal) sleep(ctx context.Context, g *grant.Grant) (step, error) {
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if r.decision(cur) != grant.Sleep {
			return false
		}
		*cur = cur.Slept(r.turn())
		return true
	})
	if !ok || err != nil {
		return load, err
	}
	r.Logger.Info("no longer renewed: nothing has asked for the user for long", "grant", r.key)
	return rearm, nil
}

// end ends a session that has lasted as long as the policy allows.
func (r *renewal) end(ctx context.Context, g *grant.Grant) (step, error) {
	if err := r.noLoginWaits(ctx); err != nil {
		return done, err
	}
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if r.decision(cur) != grant.End {
			return false
		}
		*cur = cur.SessionEnded(r.turn())
		return true
	})
	return either(ok, publish), err
}

// leaveToLogin leaves a grant with ended tokens to a waiting login, whose turn comes first. A
// command that would wait longer than deferMax is answered at once.
func (r *renewal) leaveToLogin(
	ctx context.Context, g *grant.Grant, turn time.Time,
) (step, error) {
	wait := max(turn.Sub(r.Now()), r.provider.Policy.Floor)
	if wait <= deferMax || !grant.IsCommand(r.work.Cause) {
		return done, r.timers.postpone(ctx, wait)
	}
	ok, err := r.outcomes.fail(ctx, g.Mark(), schema.ReasonNoRefreshToken)
	if !ok || err != nil {
		return load, err
	}
	if err := r.Timers.Arm(ctx, r.key, turn, g.NextTimer(turn)); err != nil {
		return done, retry(err)
	}
	return done, nil
}
