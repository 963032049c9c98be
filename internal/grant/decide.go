package grant

import (
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// Step is what to do next with a grant.
type Step string

// The steps. Each ends in an outcome that answers the work's cause, but for Drop.
const (
	Drop    Step = "drop"    // a timer of a grant that is no longer renewed: nothing to do, nobody to answer
	Refuse  Step = "refuse"  // a command for such a grant: answer user.refresh_failed
	Refresh Step = "refresh" // claim, present the refresh token, save the pair, then Sync
	Sync    Step = "sync"    // fetch the profile with the access token
	Publish Step = "publish" // the outcome is stored already: publish it again under the same id
	SignOut Step = "signout" // the access token has ended and there is no refresh token: user.reauth_required
	Decline Step = "decline" // tokens are wanted, and there is no refresh token: the user keeps what is left, user.refresh_failed
	Suspend Step = "suspend" // the refresh token is superseded: never present it, user.refresh_failed
)

// slack covers timers that fire up to a second early and the calls that follow.
const slack = 2 * time.Second

// IsCommand reports whether c is something a service asked for and waits to see answered.
func IsCommand(c schema.Cause) bool { return slices.Contains(schema.Commands(), c.Type) }

// Decide says what to do with g for w at now. It is the whole rule of when a refresh token is
// presented.
func Decide(g Grant, w Work, p Policy, now time.Time) Step {
	if w.Mark.Supersedes(g) && !g.OnCandidate() {
		return Suspend
	}
	if g.about(w.Cause) {
		switch g.Progress {
		case Saved:
			return Sync
		case Synced:
			return Publish
		}
	}
	if g.Status != Live {
		if IsCommand(w.Cause) {
			return Refuse
		}
		return Drop
	}
	if g.Pair.Refresh.IsZero() {
		return g.withoutRefresh(w, now)
	}
	if g.OnCandidate() && !g.inDoubt() && g.Verdict == nil && g.Pair.ExpiresAt.Sub(now) > slack && !g.refused(w) {
		return Sync // nothing of a login is presented as long as its access token can name the user
	}
	if g.wantsTokens(w, p, now) {
		return Refresh
	}
	return Sync
}

// withoutRefresh is Decide for a grant that cannot be renewed: its user keeps the access token
// until that has ended, whoever asks for another one.
func (g Grant) withoutRefresh(w Work, now time.Time) Step {
	if g.Pair.ExpiresAt.IsZero() {
		return Sync // the provider gave it no end: userinfo tells when there is one
	}
	switch left := g.Pair.ExpiresAt.Sub(now); {
	case left <= 0:
		return SignOut
	case IsCommand(w.Cause) && !g.OnCandidate() && (w.Want == schema.WantTokens || left < w.MinValid):
		return Decline
	}
	return Sync
}

func (g Grant) wantsTokens(w Work, p Policy, now time.Time) bool {
	left := g.Pair.ExpiresAt.Sub(now)
	switch {
	case g.Pair.Refresh.IsZero():
		return false
	case g.Pair.Access.IsZero():
		return true // the provider's answer had none that could be read
	case g.inDoubt():
		// The token may be spent already; only presenting it again, soon, can tell.
		return true
	case g.Verdict != nil && p.confirms(*g.Verdict, now):
		return true
	case left > slack && now.Sub(g.RefreshedAt) < p.Floor:
		return false
	case g.refused(w):
		return true
	case left < p.margin(g.Pair.Lifetime)+p.largestJitter(g.Pair.Lifetime)+slack:
		return true
	}
	return w.Want == schema.WantTokens || left < w.MinValid
}

// refused reports whether the provider did not take g's access token in the course of w.
func (g Grant) refused(w Work) bool {
	return w.Refused != "" && w.Refused == g.Pair.Access.Fingerprint()
}

// inDoubt reports whether the stored refresh token was presented by somebody whose answer nobody
// knows.
func (g Grant) inDoubt() bool {
	f := g.Fingerprint()
	return g.Doubt != nil && g.Doubt.Fingerprint == f ||
		g.Claim != nil && g.Claim.Presented && g.Claim.Fingerprint == f
}

// confirms reports whether a refusal at now says more than v does: a second one some time after the
// first, and a third one a little later, when it is known what the provider said to everybody else
// around the second. Timers may be early, hence the slack.
func (p Policy) confirms(v Verdict, now time.Time) bool {
	if v.Again.IsZero() {
		return now.Sub(v.At) >= p.toSecond(v)-slack/2
	}
	gap := p.toThird(v)
	return now.Sub(v.Again) >= gap-min(slack/2, gap/2)
}

// latest is how late a third refusal may be: what others were told by then, the guard still knows.
const latest = 30 * time.Minute

// Final reports whether one more refusal of the token at now makes v final. It must be soon after
// the second, or soon after it was due where timers are late: of what the provider said long ago
// nobody knows enough.
func (p Policy) Final(v Verdict, now, due time.Time) bool {
	late := min(max(0, now.Sub(due)), latest)
	soon := 3*p.toThird(v) + slack + late
	if v.Unsure {
		soon = max(soon, 2*p.RetryLater) // it is not tried more often
	}
	return !v.Again.IsZero() && p.confirms(v, now) && now.Sub(v.Again) <= soon
}

// toSecond is the time between the first refusal and the second.
func (p Policy) toSecond(v Verdict) time.Duration {
	if v.Unsure {
		return p.ConfirmUnknown
	}
	return p.ConfirmMin
}

// toThird is the time between the second refusal and the third.
func (p Policy) toThird(v Verdict) time.Duration {
	if v.Unsure {
		return p.ConfirmUnknown
	}
	return p.ConfirmMin / 3
}

// Accepts reports whether tokens that came from presenting the refresh token with this fingerprint,
// asked for at sentAt, are still the newest when the record has become g: nobody has stored the
// answer to a later presentation, and no newer login is there.
func (g Grant) Accepts(presented string, sentAt time.Time) bool {
	if g.Pair.Parent == presented {
		return g.Pair.SentAt.Before(sentAt)
	}
	return g.Fingerprint() == presented
}
