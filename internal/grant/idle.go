package grant

import (
	"time"

	"github.com/renewd/renewd/schema"
)

// activityEvery is the longest time for which an activity of a user need not be written down.
const activityEvery = 5 * time.Minute

// Notes reports whether an activity at now is to be written down in g. Only a policy that lets idle
// users rest needs such writes, and one write each few minutes is enough.
func (g *Grant) Notes(p *Policy, now time.Time) bool {
	return p.Idle > 0 && now.Sub(g.ActiveAt) >= min(activityEvery, p.Idle/4)
}

// Noted is g when something asked for its user at now, a reader of tokens for instance. No outcome
// shows the change, so Version stays.
func (g Grant) Noted(nonce string, now time.Time) Grant {
	g.ActiveAt, g.SavedBy = now, nonce
	return g
}

// idle reports whether nothing has asked for g's user for as long as the policy waits. A grant
// without a refresh token is never idle: it costs the provider nothing, and its end is worth
// telling. Nor is a grant idle whose token may be spent, or was refused and must be tried again.
func (g *Grant) idle(p *Policy, now time.Time) bool {
	last := later(g.ActiveAt, g.LoginAt)
	if p.Idle <= 0 || last.IsZero() || g.Pair.Refresh.IsZero() || g.inDoubt() || g.Verdict != nil {
		return false
	}
	return now.Sub(last) >= p.Idle
}

// Slept is g, as stored, when it is Dormant: nothing is due any more, except the end of the session
// where the policy has an end. A Dormant grant has nothing left to be told. Its count of failures
// ends: later failures are counted from the wake on, and a later success is a recovery.
func (g Grant) Slept(t Turn) Grant {
	g = g.AsStored()
	g.change(t)
	g.Owed = g.Untold(schema.Cause{}, t.Told)
	if g.failing() {
		g.Progress, g.Recovered = "", true
		g.Attempts, g.Outages, g.LastError = 0, 0, ""
	}
	g.FailingSince, g.ToldAlone = time.Time{}, false
	g.Status, g.NextDueAt = Dormant, g.sessionEnd(t.Policy)
	return g
}

// wakened is the working copy of g for t's work: a command ends Dormant. The next save stores it.
func (g Grant) wakened(t Turn) Grant {
	if g.Status == Dormant && IsCommand(t.Work.Cause) {
		g.Status, g.NextDueAt = Live, t.Now
	}
	return g
}

// sessionEnd is when the policy ends g's session; zero: never, or not known.
func (g *Grant) sessionEnd(p *Policy) time.Time {
	if p.SessionMax <= 0 || g.LoginAt.IsZero() {
		return time.Time{}
	}
	return g.LoginAt.Add(p.SessionMax)
}

// Outlasted reports whether the session of g has lasted for as long as the policy lets a session
// last. Only a proven session can have.
func (g *Grant) Outlasted(p *Policy, now time.Time) bool {
	end := g.sessionEnd(p)
	renewed := g.Status == Live || g.Status == Dormant
	return renewed && !g.OnCandidate() && !end.IsZero() && !now.Before(end.Add(-slack/2))
}

// SessionEnded is g when the policy's limit has ended its session. The tokens are dropped, as by a
// logout; waiting logins have their turn as usual. The outcome is a user.signed_out, since the
// provider has refused nothing. NextDueAt stays set until Told.
func (g Grant) SessionEnded(t Turn) Grant {
	g = g.AsStored()
	g.change(t)
	g.turn(t, Synced)
	g.Status, g.Pair, g.Verdict, g.Doubt = SignedOff, Pair{}, nil, nil
	g.Attempts, g.Outages, g.ToldAlone = 0, 0, false
	g.FailingSince = time.Time{}
	g.LastError, g.FailedAt = schema.ReasonSessionMax, t.Now
	g.Refreshed, g.Recovered = false, false
	g.NextDueAt = t.Now
	g.Pending = g.pending(schema.UserSignedOut, schema.SignedOut{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: schema.ReasonSessionMax,
	})
	g.Pending.ID = signOutID(g.Key, g.Cause, g.Version) // see SignedOut
	return g
}

// planned is when the tokens of g are due, if all is well: in a window of the policy, but in time
// to keep an unused refresh token alive, and to end the session. An unproven login waits for
// neither.
func (g *Grant) planned(t Turn) time.Time {
	at := t.Policy.Due(g.Pair, t.Now, t.Draw)
	if g.OnCandidate() {
		return at
	}
	at = t.Policy.Within(at, t.Draw)
	if kept := t.Policy.keptAlive(g.Pair); !kept.IsZero() {
		at = earlier(at, kept)
	}
	return later(g.bySessionEnd(at, t.Policy), t.Now.Add(t.Policy.Floor))
}

// bySessionEnd is at, or the end of g's session if the end is earlier.
func (g *Grant) bySessionEnd(at time.Time, p *Policy) time.Time {
	if end := g.sessionEnd(p); !end.IsZero() {
		return earlier(at, end)
	}
	return at
}

// keptAlive is when a refresh token is presented to keep it alive; zero: with its access token.
func (p *Policy) keptAlive(pair Pair) time.Time {
	if p.Keepalive <= 0 || pair.SentAt.IsZero() || pair.Refresh.IsZero() {
		return time.Time{}
	}
	return pair.SentAt.Add(p.Keepalive)
}

// retried is at, the time of a try that can wait for a window, moved into the window, but in time
// to keep the pair's refresh token alive.
func (p *Policy) retried(pair Pair, at time.Time, draw float64) time.Time {
	within := p.Within(at, draw)
	if kept := p.keptAlive(pair); !kept.IsZero() {
		return earlier(within, later(kept, at))
	}
	return within
}

// keepsAlive reports whether the pair's refresh token is to be presented now to keep it alive.
func (p *Policy) keepsAlive(pair Pair, now time.Time) bool {
	at := p.keptAlive(pair)
	return !at.IsZero() && !now.Before(at.Add(-slack))
}
