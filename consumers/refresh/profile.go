package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// profile asks the provider for the user's profile with the access token.
func (r *renewal) profile(ctx context.Context, g *grant.Grant) (step, error) {
	if !g.Refreshed {
		if wait := r.provider.cooldown(g, false); wait > 0 {
			return done, r.timers.postpone(ctx, wait)
		}
	}
	if g.Pair.Access.IsZero() {
		return r.failed(ctx, g, grant.Failure{
			Reason: schema.ReasonProviderUnknown, Code: "no access token", Own: true,
		})
	}
	if r.provider.IDTokens == nil { // else no call is made
		if err := r.provider.waitRate(ctx); err != nil {
			return done, err
		}
	}
	answer, named, err := r.calls.profile(ctx, g)
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		return r.accessRefused(ctx, g)
	case errors.Is(err, grant.ErrSubjectMismatch):
		r.Logger.Error("the provider's userinfo is about another user; nothing of it was stored",
			"grant", r.key, "hint", "check that user ids in user.login are the provider's own, "+
				"and that the login's tokens belong to that user")
		if g.OnCandidate() {
			return r.unproven("tokens",
				"the provider says that these tokens are another user's"), nil
		}
		return r.failed(ctx, g, grant.Failure{
			Reason: schema.ReasonSubjectMismatch, Own: true, Final: true,
		})
	case err != nil:
		return r.withoutProfile(ctx, g, asFault("userinfo", err))
	}
	if named {
		r.provider.named.Store(r.Now().UnixNano())
	}
	if r.read, err = r.fitting(answer); err != nil {
		return r.withoutProfile(ctx, g, &grant.Fault{
			Class: grant.Unknown,
			Op:    "userinfo",
			Err:   err,
		})
	}
	return keep, nil
}

// accessRefused: the provider does not accept the access token, whatever its expiry says. An access
// token from this very renewal is no reason to get another: the provider's userinfo does not know
// the token yet, or is out of order. Without a refresh token the answer is a refusal of the user,
// to be confirmed like any other refusal.
func (r *renewal) accessRefused(ctx context.Context, g *grant.Grant) (step, error) {
	f := &grant.Fault{Class: grant.Unknown, Op: "userinfo", Status: 401}
	if g.Pair.Refresh.IsZero() {
		f.Class, f.Code, f.Reason = grant.Permanent, "401", schema.ReasonNoRefreshToken
		r.provider.report(g, f)
		r.fault = f
		return judge, nil
	}
	if g.Refreshed {
		return r.withoutProfile(ctx, g, f)
	}
	r.refused(g)
	if r.decision(g) == grant.Refresh {
		return claim, nil
	}
	// Another worker rotated the pair moments ago, within the floor: wait until the floor is over.
	return r.failed(ctx, g, grant.Failure{Reason: schema.ReasonProfile, Code: "401"})
}

// withoutProfile goes on without a profile. After a rotation the renewal is still a success, and
// the profile is asked for again soon. Without a rotation the renewal is a failed try.
func (r *renewal) withoutProfile(
	ctx context.Context, g *grant.Grant, f *grant.Fault,
) (step, error) {
	if f.Class == grant.Throttled {
		r.provider.report(g, f) // other failures of a profile say nothing about refreshing
	}
	r.Logger.Warn("profile not synced", "grant", r.key, "class", f.Class, "error", f)
	if g.Refreshed && !g.OnCandidate() {
		*g = g.WithoutProfile(r.turn())
		soon := r.Now().Add(max(f.RetryAfter, r.provider.Policy.RetryMax))
		soon = r.provider.Policy.Within(soon, r.Rand())
		g.NextDueAt = earlier(g.NextDueAt, soon)
		return publish, nil
	}
	out := failure(f)
	if out.Own {
		out.Reason = schema.ReasonProfile
	}
	return r.failed(ctx, g, out)
}

// failed writes down a profile sync that did not work.
func (r *renewal) failed(
	ctx context.Context, g *grant.Grant, f grant.Failure,
) (step, error) {
	if r.faults.hopeless(g, f) {
		return r.unproven("tokens", neverNamed+f.Reason), nil
	}
	access := g.Pair.Access
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		if !cur.Pair.Access.Equal(access) || cur.Status != grant.Live {
			return false
		}
		*cur = cur.Failed(r.turn(), f)
		return true
	})
	return either(ok, publish), err
}

// profile asks the provider for the user of g's tokens. An ID token may name the user instead of
// userinfo. If no ID token came with the access token of a proven grant, the stored profile stays,
// and named is false: many refresh answers have no ID token.
func (c *calls) profile(
	ctx context.Context, g *grant.Grant,
) (p schema.Profile, named bool, err error) {
	began := time.Now()
	defer func() {
		c.meters.called(ctx, c.key.Provider, "userinfo", profileFault(err), time.Since(began))
	}()
	if c.provider.IDTokens == nil {
		p, err = c.provider.Client.UserInfo(ctx, g.Pair.Access, c.key.User)
		return p, true, err
	}
	pair := g.Pair
	p, err = c.provider.IDTokens.Identify(ctx, pair.ID, pair.Access, pair.Answered, c.key.User)
	if !errors.Is(err, grant.ErrAccessRefused) || g.OnCandidate() {
		return p, true, err
	}
	stored, damaged := g.Profile.Decode()
	if stored == nil || damaged != nil {
		return p, false, err
	}
	return *stored, false, nil
}

// profileFault is how a call for a profile counts.
func profileFault(err error) *grant.Fault {
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		return &grant.Fault{Class: "refused"}
	case errors.Is(err, grant.ErrSubjectMismatch):
		return &grant.Fault{Class: "mismatch"}
	}
	return asFault("userinfo", err)
}

// fitting is a profile fit for the store. Something is left out of a profile that is too large.
func (j *job) fitting(read schema.Profile) (grant.Profile, error) {
	p, err := grant.NewProfile(read)
	if err == nil && len(p) > j.MaxProfile {
		j.Logger.Warn("the provider's profile is too large to be stored whole",
			"grant", j.key, "bytes", len(p), "limit", j.MaxProfile)
		p, err = grant.NewProfile(schema.FitProfile(read, j.MaxProfile))
	}
	return p, err
}
