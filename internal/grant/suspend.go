package grant

import (
	"time"

	"github.com/renewd/renewd/schema"
)

// HoldArrives is the meaning of a user.suspend or a user.resume at this place to g, as stored.
// Fresh: the command decides. Stored: it was carried out, and was delivered again. Outdated: a
// newer login was proven, or a newer suspend, resume or logout was done. Nothing changes then.
func (g *Grant) HoldArrives(place Position) Arrival {
	switch {
	case place.Before(g.Login):
		return Outdated
	case g.Hold.Stream.Equal(place.Stream) && g.Hold.Sequence == place.Sequence:
		return Stored
	case !g.Hold.Before(place):
		return Outdated
	}
	return Fresh
}

// SuspendedBy is g after the user.suspend of t's work, which is Fresh and has this place. The
// tokens stay, and nothing is done with them. Earlier unproven logins are owed a rejection, since
// each would end the suspension. Where nothing was proven, their rejection is the end of the
// session, and told as such. A grant that is not renewed for another reason keeps its status, and
// the command is refused. NextDueAt stays set until Told, so that the reconciler finds a grant
// whose outcome was not told yet.
func (g Grant) SuspendedBy(t Turn, place Position) Grant {
	if g = g.AsStored(); g.Status == Unproven {
		g = g.LoggedOut(t, place, false, "")
		g.Hold = place
		return g
	}
	g.change(t)
	g.turn(t, Synced)
	g = g.withoutLogins(place, "the user was suspended before it was proven")
	g.Hold = place
	g.Refreshed = false
	if g.Status == Live || g.Status == Dormant {
		g.Status = Suspended
	}
	g.NextDueAt = t.Now
	if g.suspended() {
		g.Pending = g.pending(schema.UserSuspended, schema.Suspended{
			Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: g.Cause.Reason,
		})
		return g
	}
	g.Pending = g.pending(schema.UserRefreshFailed, schema.RefreshFailed{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: g.Refusal(),
	})
	return g
}

// suspended reports whether a user.suspend holds g, as stored.
func (g *Grant) suspended() bool { return g.Status == Suspended && !g.IsSuperseded() }

// SuspendedAt is when the stream took the user.suspend that holds g; zero if no user.suspend does.
func (g *Grant) SuspendedAt() time.Time {
	stored := g.AsStored()
	if !stored.suspended() {
		return time.Time{}
	}
	return stored.Hold.Time
}

// ResumedBy is g after the user.resume of t's work, which is Fresh and has this place. If a
// user.suspend held g, g is live, and due at once. Everything known of its refresh token stays: a
// refusal still to be confirmed is confirmed, and a token that may be spent is presented to find
// out. The outcome is the outcome of the renewal, which the caller asks for next.
func (g Grant) ResumedBy(t Turn, place Position) Grant {
	g = g.AsStored()
	held := g.suspended() && !t.Work.Mark.Supersedes(&g)
	g.change(t)
	g.Hold = place
	if !held {
		return g
	}
	g.turn(t, "")
	g.Status, g.Recovered, g.NextDueAt = Live, true, t.Now
	g.Attempts, g.Outages, g.LastError = 0, 0, ""
	return g
}

// MayBeSpent is g, which is not renewed any more, when a presentation of its refresh token under
// way ended without a readable answer.
func (g Grant) MayBeSpent(t Turn) Grant {
	g.change(t)
	return g.Doubted(t.Now)
}
