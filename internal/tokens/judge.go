package tokens

import (
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// verdict is the answer of a record to a caller at one moment.
type verdict struct {
	token Token           // lives; without an Access there is no token
	none  *schema.NoToken // why there is no token; nil with a token
	ask   bool            // a renewal may give a better answer
}

const (
	// restMost is how long after a failed try no renewal is asked for, unless a next try is planned
	// to come first.
	restMost = 30 * time.Second
	// retryMost is the longest wait told to a caller: the trouble may be over sooner.
	retryMost = 5 * time.Minute
)

// judge is the verdict of g, as stored, for a caller who wants a token good for at least want.
func judge(g grant.Grant, want time.Duration, now time.Time) verdict {
	switch {
	case g.Status == grant.Live:
		return judgeLive(g, want, now)
	case g.Status == grant.Dormant: // a read wakes the grant, also where its token still lives
		v := judgeLive(g, want, now)
		v.ask = true
		return v
	case g.Candidate != nil && fresh(*g.Candidate):
		return verdict{
			none: tryAgain("a login of this user waits to be confirmed", "", 0),
			ask:  true,
		}
	case g.Status == grant.Unproven && g.Candidate != nil:
		wait := g.Candidate.NextDueAt.Sub(now)
		const message = "the login of this user could not be confirmed yet"
		return verdict{none: tryAgain(message, g.Candidate.LastError, wait)}
	}
	return verdict{none: ended(g)}
}

// fresh reports whether no try of the login has failed yet: it may be confirmed in a moment.
func fresh(c grant.Candidate) bool {
	return c.Attempts+c.Outages == 0 && c.Verdict == nil
}

func judgeLive(g grant.Grant, want time.Duration, now time.Time) verdict {
	endless := g.Pair.ExpiresAt.IsZero()
	left := g.Pair.ExpiresAt.Sub(now)
	v := verdict{}
	if !g.Pair.Access.IsZero() && (endless || left > 0) {
		v.token = tokenOf(g)
	}
	alive := !v.token.Access.IsZero()
	if most := mostValid(g.Pair); alive && (endless || left >= min(want, most)) {
		if !endless && left < want {
			v.token.Short = schema.ShortCapped
		}
		return v
	}
	waits := g.Candidate != nil && fresh(*g.Candidate)
	until, rests := restsUntil(g, now)
	switch {
	case g.Pair.Refresh.IsZero() && alive:
		v.token.Short = schema.ShortNoRefreshToken
	case g.Pair.Refresh.IsZero() && !waits:
		v.none = ended(g)
	case rests && alive:
		v.token.Short = schema.ShortDelayed
	case rests:
		const message = "the access token has ended and its renewal fails for now"
		v.none = tryAgain(message, g.LastError, until.Sub(now))
	case alive:
		v.token.Short, v.ask = schema.ShortDelayed, true
	default:
		v.none = tryAgain("the access token has ended and its renewal takes its time", g.LastError,
			0)
		v.ask = true
	}
	return v
}

// mostValid is the longest validity that a pair is renewed for. The life of the provider's tokens
// is known once renewd has got a token itself: the tokens of a login may have been old.
func mostValid(p grant.Pair) time.Duration {
	if p.Parent == "" {
		return schema.MaxMinValid * time.Second
	}
	return p.Lifetime * 9 / 10
}

// restsUntil reports whether a try failed a moment ago, so that another try now is useless, and
// when the next try makes sense.
func restsUntil(g grant.Grant, now time.Time) (until time.Time, rests bool) {
	switch {
	case g.Verdict != nil: // asked again at its time, and not before
		until = g.NextDueAt
	case g.Attempts+g.Outages > 0:
		until = g.FailedAt.Add(restMost)
		if g.NextDueAt.Before(until) {
			until = g.NextDueAt
		}
	}
	return until, until.After(now)
}

func tokenOf(g grant.Grant) Token {
	return Token{
		Access: g.Pair.Access, Type: "Bearer", Scope: g.Pair.Scope, ExpiresAt: g.Pair.ExpiresAt,
		Version: g.Version,
	}
}

// statusSignedOut is the status of a user signed out on request.
const statusSignedOut grant.Status = "signed_out"

// ended says why a grant without renewals has no token for its callers.
func ended(g grant.Grant) *schema.NoToken {
	no := &schema.NoToken{
		Code:    schema.TokenSignIn,
		Reason:  g.LastError,
		LoginAt: g.LoginAt.UTC(),
		Since:   g.FailedAt.UTC(),
		Message: "the user must sign in again",
	}
	switch {
	case g.Status == grant.Forgotten || g.Status == grant.Unproven:
		return unknownUser()
	case g.Status == grant.Live:
		no.Reason, no.Since = schema.ReasonNoRefreshToken, g.Pair.ExpiresAt.UTC()
	case g.Status == grant.ReauthRequired && g.Verdict != nil:
		no.Reason = g.Verdict.Reason
	case g.IsSuperseded():
		no.Code = schema.TokenSuperseded
		no.Message = "the store is older than what was published: " +
			"an operator decides, or a login does"
	case g.Status == grant.Suspended:
		no.Code, no.Message = schema.TokenSuspended, "the user is suspended, "+
			"until resumed or signed in again"
		no.Reason, no.Since = schema.ReasonSuspended, g.SuspendedAt().UTC()
	case g.Status == statusSignedOut:
		no.Code = schema.TokenSignedOut
	}
	return no
}

// outlasted says that the session of g has lasted for as long as the policy lets a session last.
func outlasted(g grant.Grant) *schema.NoToken {
	return &schema.NoToken{
		Code: schema.TokenSignedOut, Reason: schema.ReasonSessionMax, LoginAt: g.LoginAt.UTC(),
		Message: "the user must sign in again: the session has reached the limit that is set",
	}
}

func unknownUser() *schema.NoToken {
	return &schema.NoToken{
		Code:    schema.TokenUnknownUser,
		Message: "no login of this user was confirmed, or the user was erased",
	}
}

// tryAgain is the answer while nothing can be had; a wait of 0 stands for a second.
func tryAgain(message, reason string, wait time.Duration) *schema.NoToken {
	return &schema.NoToken{
		Code:              schema.TokenTryAgain,
		Message:           message,
		Reason:            reason,
		RetryAfterSeconds: seconds(wait),
	}
}

// seconds is a wait in whole seconds, rounded up: one at least, retryMost at most.
func seconds(wait time.Duration) int {
	wait = min(max(wait, time.Second), retryMost)
	return int((wait + time.Second - 1) / time.Second)
}
