package refresh

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// judge writes down a presentation that brought no tokens, or a refusal of the access token of a
// grant without a refresh token.
func (r *renewal) judge(ctx context.Context, g *grant.Grant) (step, error) {
	f, refused := r.fault, g.Fingerprint()
	if g.Pair.Refresh.IsZero() {
		refused = g.Pair.Access.Fingerprint()
	}
	r.faults.log(ctx, f)
	if f.Class == grant.Unsent && errors.Is(f, runner.ErrLeaseLost) {
		return done, retry(f)
	}
	withheld, doubt, final := r.faults.withhold(ctx, g, f, refused), g.Doubt, false
	failed := r.faults.failure(g, f)
	if withheld != "" {
		failed = heldBack(withheld, f)
	}
	if (withheld != "" || f.Class != grant.Permanent) && r.faults.hopeless(g, failed) {
		return r.unproven("tokens", neverNamed+failed.Reason), nil
	}
	mayBeSpent, rests := doubt != nil || f.Class == grant.Ambiguous, false
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if cur.Fingerprint() != refused && cur.Pair.Access.Fingerprint() != refused {
			return false // a newer login, or another worker's answer: f is about older tokens
		}
		if rests = cur.Status != grant.Live; rests { // suspended meanwhile: f ends nothing
			*cur = cur.MayBeSpent(r.turn())
			return mayBeSpent
		}
		if cur.Doubt == nil {
			cur.Doubt = doubt
		}
		switch {
		case withheld != "":
			*cur = cur.Held(r.turn(), failed)
			return true
		case r.faults.counts(cur, f):
			next, ends := r.faults.counted(cur, f, failed, refused)
			if final = ends; final && !cur.OnCandidate() && cur.Candidate != nil {
				final = false // a login has come since the refusal was weighed
				*cur = cur.Held(r.turn(), heldBack(schema.ReasonUnweighed, f))
				return true
			}
			*cur = next
			return !(final && cur.OnCandidate())
		case f.Class == grant.Ambiguous:
			*cur = cur.Doubted(r.Now())
		}
		*cur = cur.Failed(r.turn(), failed)
		return true
	})
	switch {
	case final && g.OnCandidate():
		return r.unproven("tokens", "the provider refuses them"), nil
	case rests && !mayBeSpent && err == nil:
		return load, r.record.giveUp(ctx) // the token was not spent
	case !ok || rests || err != nil:
		return load, err
	case final:
		r.Logger.Info("user must sign in again",
			"grant", r.key, "reason", g.Verdict.Reason, "code", g.Verdict.Code)
	}
	return publish, nil
}

// faults says what a failed call means for the grant.
type faults struct{ *job }

func (j *faults) log(ctx context.Context, f *grant.Fault) {
	level := slog.LevelWarn
	switch f.Class {
	case grant.Config:
		level = slog.LevelError
	case grant.Permanent:
		level = slog.LevelInfo // users leave
	}
	j.Logger.Log(ctx, level, f.Op+" failed",
		"grant", j.key, "class", f.Class, "error", f, "hint", hint(f))
	if f.Detail != "" {
		j.Logger.DebugContext(ctx, "what the provider says of it",
			"grant", j.key, "op", f.Op, "detail", f.Detail)
	}
}

// counts reports whether f may become a verdict on g, or confirm a verdict. A refusal in known
// words may, and so may a refusal of a proven refresh token in unknown words. Unknown words do not
// count beside an unconfirmed verdict in known words, until Policy.ConfirmUnknown has passed since
// the verdict.
func (j *faults) counts(g *grant.Grant, f *grant.Fault) bool {
	unsure := f.Class == grant.Unknown && f.Op == "refresh" && !g.OnCandidate()
	if v := g.Verdict; unsure && v != nil && !v.Unsure {
		return j.Now().Sub(v.At) >= j.provider.Policy.ConfirmUnknown
	}
	return unsure || f.Class == grant.Permanent
}

// counted is g after a refusal that counts, and whether the refusal is final.
func (j *faults) counted(
	g *grant.Grant, f *grant.Fault, failed grant.Failure, refused string,
) (next grant.Grant, final bool) {
	if f.Class == grant.Permanent {
		return g.Refused(j.turn(), f, refused)
	}
	return g.RefusedUnsurely(j.turn(), f, failed, refused)
}

// withhold says why a refusal that would be final must not be final now. The first two refusals are
// never final. The third needs the guard's word. A refusal of an access token is also withheld
// until userinfo has named a user since the second refusal, because userinfo may refuse all users.
// A question without an answer withholds the refusal too.
func (j *faults) withhold(
	ctx context.Context, g *grant.Grant, f *grant.Fault, refused string,
) (reason string) {
	v, policy := g.Verdict, j.provider.Policy
	if !j.counts(g, f) || v == nil || v.Unsure != (f.Class == grant.Unknown) ||
		v.Fingerprint != refused || !policy.Final(*v, j.Now(), g.NextDueAt) {
		return ""
	}
	if f.Op == "userinfo" && j.provider.named.Load() < v.Again.UnixNano() {
		return schema.ReasonNobodyRenewed
	}
	waits, err := j.Logins.LoginWaits(ctx, j.key)
	if !g.OnCandidate() && (waits || err != nil || g.Candidate != nil) {
		return schema.ReasonUnweighed // do not sign out a user whose newer login is still queued
	}
	if j.provider.Guard == nil {
		if v.Unsure {
			return schema.ReasonNobodyRenewed // without a guard this is not known
		}
		return ""
	}
	if reason, err = j.provider.Guard.Withhold(ctx, *v); err != nil {
		j.Logger.Warn("a refusal could not be weighed against what others were told; "+
			"it is asked for again", "grant", j.key, "error", err)
		return schema.ReasonUnweighed
	}
	return reason
}

// heldBack is how a refusal counts that is not believed now. While the provider refuses most users,
// or renews no user, only asking again soon shows when the trouble is over. Settings that never
// worked wait for an operator.
func heldBack(reason string, f *grant.Fault) grant.Failure {
	own := reason == schema.ReasonUnproven
	return grant.Failure{Reason: reason, Code: f.Code, Own: own, Final: own}
}

// alone is how long a user must have failed, while others are renewed, before the failure is told.
const alone = 24 * time.Hour

// failure is how a fault of g counts that is no verdict. A failure of one user alone is told once,
// after a day, and the user is tried on like any other: the provider has not said that the user
// must sign in again.
func (j *faults) failure(g *grant.Grant, f *grant.Fault) grant.Failure {
	out, guard := failure(f), j.provider.Guard
	lasts := g.Outages > 0 && !g.FailingSince.IsZero() && j.Now().Sub(g.FailingSince) >= alone
	if out.Reason != schema.ReasonProviderUnavailable || g.OnCandidate() || !lasts ||
		guard == nil || !guard.Renewing() {
		return out
	}
	out.Own = !g.ToldAlone
	out.Reason, out.Final = schema.ReasonFailingAlone, out.Own
	return out
}

// failure is how a fault counts that is no verdict, whatever the grant.
func failure(f *grant.Fault) grant.Failure {
	out := grant.Failure{Code: f.Code, Wait: f.RetryAfter}
	switch f.Class {
	case grant.Throttled:
		out.Reason = schema.ReasonThrottled
	case grant.Config:
		out.Reason = schema.ReasonConfig
	case grant.Unknown, grant.Permanent:
		out.Reason, out.Own = schema.ReasonProviderUnknown, true
	default:
		out.Reason = schema.ReasonProviderUnavailable
	}
	return out
}

// hopeless reports whether f is the last failure that a candidate may have.
func (j *faults) hopeless(g *grant.Grant, f grant.Failure) bool {
	if !g.OnCandidate() {
		return false
	}
	p := j.provider.Policy
	failures := g.Attempts + g.Outages + 1
	old := !g.Login.Time.IsZero() && j.Now().Sub(g.Login.Time) > p.MaxLifetime
	// Userinfo has named a user since the candidate failed last, so userinfo works. A user who was
	// named before that proves nothing: userinfo may refuse all users since.
	since := g.FailedAt
	if since.Before(g.Login.Time) {
		since = g.Login.Time
	}
	witness := j.provider.named.Load() > since.UnixNano()
	return failures >= p.Tries && (old || f.Own && witness) || f.Own && f.Final
}

func hint(f *grant.Fault) string {
	switch f.Class {
	case grant.Config:
		return "check this provider's client id, secret, client_auth and URLs " +
			"in renewd's settings; no user is signed out by it"
	case grant.Throttled:
		return "the provider asks for patience; " +
			"lower this provider's rate or concurrency if it goes on"
	case grant.Unknown:
		return "an answer that renewd does not know. While others are renewed it is taken for " +
			"a dead session after three of them, hours apart; " +
			"a rule for this provider says at once what it means (settings: rules)"
	case grant.Permanent:
		return "asked once more before the user is told to sign in again"
	default:
		return "tried again with backoff"
	}
}
