package grant

import (
	"time"

	"github.com/renewd/renewd/schema"
)

// Step is the next thing to do with a grant.
type Step string

// The steps. Each step except Drop and Sleep ends in an outcome that answers the work's cause.
const (
	Drop    Step = "drop"    // a timer of a grant that is not renewed any more: nothing to do
	Refuse  Step = "refuse"  // a command for such a grant: answer user.refresh_failed
	Refresh Step = "refresh" // claim, present the refresh token, save the pair, then Sync
	Sync    Step = "sync"    // fetch the profile with the access token
	Publish Step = "publish" // the outcome is stored already: publish again under its id
	SignOut Step = "signout" // no refresh token, and the access token ended: user.reauth_required
	Decline Step = "decline" // no refresh token, and tokens are wanted: user.refresh_failed
	Sleep   Step = "sleep"   // nothing has asked for the user for long: Dormant from now on
	End     Step = "end"     // the session is as old as the policy lets it be: user.signed_out
	Suspend Step = "suspend" // a superseded refresh token is never presented: user.refresh_failed
)

// slack covers timers that fire up to a second early, and the calls after a timer.
const slack = 2 * time.Second

// IsCommand reports whether c is something a service asked for and waits to see answered.
func IsCommand(c schema.Cause) bool { return c.Type.IsCommand() }

// Decide returns the next step with g for w at now. Decide is the whole rule of when a refresh
// token is presented.
func Decide(g *Grant, w Work, p *Policy, now time.Time) Step {
	if w.Mark.Supersedes(g) && !g.OnCandidate() {
		return Suspend
	}
	switch {
	case g.saved(w.Cause) && !g.suspended():
		return Sync
	case g.about(w.Cause) && g.Progress == Synced:
		return Publish
	}
	switch {
	case g.Outlasted(p, now):
		return End
	case g.Status == Dormant && !IsCommand(w.Cause) && g.dueAt(now):
		return Sleep // the policy ends the session later than before, or not any more
	case g.Status != Live && IsCommand(w.Cause):
		return Refuse
	case g.Status != Live:
		return Drop
	case !g.OnCandidate() && !IsCommand(w.Cause) && g.idle(p, now):
		return Sleep
	}
	if g.Pair.Refresh.IsZero() {
		return g.withoutRefresh(w, now)
	}
	if g.OnCandidate() && !g.inDoubt() && g.Verdict == nil && g.Pair.ExpiresAt.Sub(now) > slack &&
		!g.refused(w) {
		return Sync // nothing of a login is presented as long as its access token can name the user
	}
	if g.wantsTokens(w, p, now) {
		return Refresh
	}
	return Sync
}

// withoutRefresh is Decide for a grant that cannot be renewed: the user keeps the access token
// until the token has ended, even if a caller asks for another token.
func (g *Grant) withoutRefresh(w Work, now time.Time) Step {
	if g.Pair.ExpiresAt.IsZero() {
		return Sync // the provider gave no end: userinfo tells when the token has ended
	}
	switch left := g.Pair.ExpiresAt.Sub(now); {
	case left <= 0:
		return SignOut
	case IsCommand(w.Cause) && !g.OnCandidate() &&
		(w.Want == schema.WantTokens || left < w.MinValid):
		return Decline
	}
	return Sync
}

func (g *Grant) wantsTokens(w Work, p *Policy, now time.Time) bool {
	left := g.Pair.ExpiresAt.Sub(now)
	switch {
	case g.Pair.Refresh.IsZero():
		return false
	case g.Pair.Access.IsZero():
		return true // the provider's answer had no readable access token
	case g.inDoubt():
		// The token may be spent already; only another presentation, soon, can tell.
		return true
	case g.Verdict != nil && p.confirms(*g.Verdict, now):
		return true
	case left > slack && now.Sub(g.RefreshedAt) < p.Floor:
		return false
	case g.refused(w):
		return true
	case left < p.margin(g.Pair.Lifetime)+p.largestJitter(g.Pair.Lifetime)+slack:
		return true
	case !g.OnCandidate() && p.keepsAlive(g.Pair, now):
		return true
	}
	return w.Want == schema.WantTokens || left < w.MinValid
}

// dueAt reports whether something of g is due at now.
func (g *Grant) dueAt(now time.Time) bool {
	return !g.NextDueAt.IsZero() && !g.NextDueAt.After(now.Add(slack))
}

// refused reports whether the provider did not take g's access token in the course of w.
func (g *Grant) refused(w Work) bool {
	return w.Refused != "" && w.Refused == g.Pair.Access.Fingerprint()
}

// inDoubt reports whether the stored refresh token was presented and the provider's answer is not
// known. Without a refresh token there is nothing to be in doubt of, whatever a claim of before may
// say.
func (g *Grant) inDoubt() bool {
	f := g.Fingerprint()
	return f != "" && (g.Doubt != nil && g.Doubt.Fingerprint == f ||
		g.Claim != nil && g.Claim.Presented && g.Claim.Fingerprint == f)
}

// confirms reports whether a refusal at now says more than v does. A second refusal does so some
// time after the first, and a third refusal a little later, when the provider's answers to all
// other users around the second are known. Timers may be early, hence the slack.
func (p *Policy) confirms(v Verdict, now time.Time) bool {
	if v.Again.IsZero() {
		return now.Sub(v.At) >= p.toSecond(v)-slack/2
	}
	gap := p.toThird(v)
	return now.Sub(v.Again) >= gap-min(slack/2, gap/2)
}

// latest is how late a third refusal may be: the guard still knows the answers to other users.
const latest = 30 * time.Minute

// Final reports whether one more refusal of the token at now makes v final. The refusal must come
// soon after the second, or soon after it was due where timers are late: too little is known of the
// provider's answers long ago.
func (p *Policy) Final(v Verdict, now, due time.Time) bool {
	late := min(max(0, now.Sub(due)), latest)
	soon := 3*p.toThird(v) + slack + late
	if v.Unsure {
		soon = max(soon, 2*p.RetryLater) // the token is not tried more often
	}
	return !v.Again.IsZero() && p.confirms(v, now) && now.Sub(v.Again) <= soon
}

// toSecond is the time between the first refusal and the second.
func (p *Policy) toSecond(v Verdict) time.Duration {
	if v.Unsure {
		return p.ConfirmUnknown
	}
	return p.ConfirmMin
}

// toThird is the time between the second refusal and the third.
func (p *Policy) toThird(v Verdict) time.Duration {
	if v.Unsure {
		return p.ConfirmUnknown
	}
	return p.ConfirmMin / 3
}

// Accepts reports whether the tokens of one presentation are still the newest when the record has
// become g. presented is the fingerprint of the presented refresh token, and sentAt the time of the
// presentation. The tokens are the newest if no answer to a later presentation was stored and there
// is no newer login.
func (g *Grant) Accepts(presented string, sentAt time.Time) bool {
	if g.Pair.Parent == presented {
		return g.Pair.SentAt.Before(sentAt)
	}
	return g.Fingerprint() == presented
}
