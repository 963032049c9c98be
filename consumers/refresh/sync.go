package refresh

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// sync fetches the profile with the access token, stores it if it changed, and finishes.
func (t *task) sync(ctx context.Context, g grant.Grant) error {
	if !g.Refreshed {
		if wait := t.quiet(ctx, g, false); wait > 0 {
			return t.later(ctx, wait)
		}
	}
	if g.Pair.Access.IsZero() {
		return t.failed(ctx, g, grant.Failure{Reason: schema.ReasonProviderUnknown, Code: "no access token", Own: true})
	}
	if t.provider.IDTokens == nil { // else nobody is called
		if err := t.pace(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	profile, named, err := t.profile(ctx, g)
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		t.meters.called(ctx, t.key.Provider, "userinfo", &grant.Fault{Class: "refused"}, time.Since(began))
		return t.accessRefused(ctx, g)
	case errors.Is(err, grant.ErrSubjectMismatch):
		t.meters.called(ctx, t.key.Provider, "userinfo", &grant.Fault{Class: "mismatch"}, time.Since(began))
		t.Logger.Error("the provider's userinfo is about another user; nothing of it was stored", "grant", t.key,
			"hint", "check that user ids in user.login are the provider's own, and that the login's tokens belong to that user")
		if g.OnCandidate() {
			return t.reject(ctx, g, "tokens", "the provider says that these tokens are another user's")
		}
		return t.failed(ctx, g, grant.Failure{Reason: schema.ReasonSubjectMismatch, Own: true, Final: true})
	case err != nil:
		f := asFault("userinfo", err)
		t.meters.called(ctx, t.key.Provider, "userinfo", f, time.Since(began))
		return t.profileFailed(ctx, g, f)
	}
	t.meters.called(ctx, t.key.Provider, "userinfo", nil, time.Since(began))
	if named {
		t.provider.named.Store(t.Stream.Now().UnixNano())
	}
	p, err := grant.NewProfile(profile)
	if err == nil && len(p) > t.MaxProfile {
		t.Logger.Warn("the provider's profile is too large to be stored whole", "grant", t.key, "bytes", len(p), "limit", t.MaxProfile)
		p, err = grant.NewProfile(schema.FitProfile(profile, t.MaxProfile))
	}
	if err != nil {
		return t.profileFailed(ctx, g, &grant.Fault{Class: grant.Unknown, Op: "userinfo", Err: err})
	}
	return t.synced(ctx, g, p)
}

// profile asks the provider whom g's tokens are of. Where an ID token says it and none came with the
// access token of a grant that is proven, nothing new was said, and nobody named: many a refresh
// answer has none.
func (t *task) profile(ctx context.Context, g grant.Grant) (p schema.Profile, named bool, err error) {
	if t.provider.IDTokens == nil {
		p, err = t.provider.Client.UserInfo(ctx, g.Pair.Access, t.key.User)
		return p, true, err
	}
	p, err = t.provider.IDTokens.Identify(ctx, g.Pair.ID, g.Pair.Access, g.Pair.Answered, t.key.User)
	if !errors.Is(err, grant.ErrAccessRefused) || g.OnCandidate() {
		return p, true, err
	}
	stored, damaged := g.Profile.Decode()
	if stored == nil || damaged != nil {
		return p, false, err
	}
	return *stored, false, nil
}

func (t *task) synced(ctx context.Context, g grant.Grant, profile grant.Profile) error {
	access := g.Pair.Access
	next, write := g.WithProfile(t.turn(), profile)
	if !write {
		return t.finish(ctx, next)
	}
	replaced := grant.Secret{}
	if g.OnCandidate() {
		replaced = g.Candidate.Pair.Refresh
	}
	next, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if !cur.Pair.Access.Equal(access) || cur.Status != grant.Live {
			return cur, false // a newer login or rotation: sync that one
		}
		next, _ := cur.WithProfile(t.turn(), profile)
		return next, true
	})
	if errors.Is(err, grant.ErrRefused) {
		return t.profileFailed(ctx, g, &grant.Fault{Class: grant.Unknown, Op: "userinfo", Err: err})
	}
	if err != nil {
		return err
	}
	t.revoke(ctx, replaced)
	more, err := t.asksMore(ctx, g, next)
	if err != nil {
		return err
	}
	if err := t.finish(ctx, next); err != nil {
		return err
	}
	if more {
		return errAgain
	}
	return nil
}

// asksMore reports whether next, which tells that g, on its candidate, was proven, is no answer to
// the command of this work: that is done next, on what is proven, unless it was answered before.
// Only before the proof is told can that be seen.
func (t *task) asksMore(ctx context.Context, g, next grant.Grant) (bool, error) {
	asked := t.given.Cause
	if !g.OnCandidate() || !grant.IsCommand(asked) || grant.SameCause(asked, next.Cause) {
		return false, nil
	}
	answered, err := t.answered(ctx, grant.OutcomeID(t.key, asked))
	if err != nil {
		return false, consumers.Retry(err, time.Second)
	}
	return !answered, nil
}

// revoke ends the session that a newer login took the place of, where the settings want that. It is
// a courtesy: whether it works or not, nothing of the user changes here.
func (t *task) revoke(ctx context.Context, replaced grant.Secret) {
	if replaced.IsZero() || !t.provider.RevokeReplaced {
		return
	}
	if err := t.provider.Client.Revoke(ctx, replaced); err != nil {
		t.Logger.Warn("the tokens that a newer login replaced could not be revoked; they live on until they end", "grant", t.key, "error", err)
	}
}

// accessRefused: the access token is not accepted, whatever its expiry says. A token that was got
// in this very renewal is no reason to get another: the provider's userinfo does not know it yet,
// or is out of order. Where there is no refresh token it is a refusal of the user, to be confirmed
// like any other.
func (t *task) accessRefused(ctx context.Context, g grant.Grant) error {
	refused := &grant.Fault{Class: grant.Unknown, Op: "userinfo", Status: 401}
	if g.Pair.Refresh.IsZero() {
		refused.Class, refused.Code, refused.Reason = grant.Permanent, "401", schema.ReasonNoRefreshToken
		t.report(g, refused)
		return t.faulted(ctx, g, refused)
	}
	if g.Refreshed {
		return t.profileFailed(ctx, g, refused)
	}
	t.work.Refused = g.Pair.Access.Fingerprint()
	if grant.Decide(g, t.work, t.provider.Policy, t.Stream.Now()) == grant.Refresh {
		return t.refresh(ctx, g)
	}
	// Rotated moments ago by somebody else: within the floor, so wait it out.
	return t.failed(ctx, g, grant.Failure{Reason: schema.ReasonProfile, Code: "401"})
}

// profileFailed: after a rotation the renewal is a success without a profile, tried again soon;
// else it is a failed try.
func (t *task) profileFailed(ctx context.Context, g grant.Grant, f *grant.Fault) error {
	if f.Class == grant.Throttled {
		t.report(g, f) // what else can go wrong with a profile says nothing about refreshing
	}
	t.Logger.Warn("profile not synced", "grant", t.key, "class", f.Class, "error", f)
	if g.Refreshed && !g.OnCandidate() {
		g = g.WithoutProfile(t.turn())
		g.NextDueAt = earlier(g.NextDueAt, t.Stream.Now().Add(max(f.RetryAfter, t.provider.Policy.RetryMax)))
		return t.finish(ctx, g)
	}
	out := failure(f)
	if out.Own {
		out.Reason = schema.ReasonProfile
	}
	return t.failed(ctx, g, out)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// failed writes down a profile sync that did not work.
func (t *task) failed(ctx context.Context, g grant.Grant, f grant.Failure) error {
	if t.hopeless(g, f) {
		return t.reject(ctx, g, "tokens", "the provider could not be brought to name their user: "+f.Reason)
	}
	access := g.Pair.Access
	g, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if !cur.Pair.Access.Equal(access) {
			return cur, false
		}
		return cur.Failed(t.turn(), f), true
	})
	if err != nil {
		return err
	}
	return t.finish(ctx, g)
}

// finish publishes the outcome, if there is one, and then arms the next timer, both acknowledged by
// the server. In this order a timer proves that the outcome is out. It may run again for the same
// work after a crash: the outcome's id and the timer's cause are the same then.
func (t *task) finish(ctx context.Context, g grant.Grant) error {
	if err := t.tell(ctx, g); err != nil {
		return err
	}
	out, err := t.alreadyOut(ctx, g)
	if err != nil {
		return err
	}
	out = out || g.Pending != nil && slices.Contains(t.out, g.Pending.ID)
	if g.Pending != nil && !out {
		if err := t.publish(ctx, g.Event(t.Source, t.Stream.Now(), t.provider.Policy.Shown), g.Mark()); err != nil {
			return err
		}
	}
	g, err = t.rest(ctx, g)
	if err != nil {
		return err
	}
	if err := t.arm(ctx, g, g.Pending != nil); err != nil {
		return err
	}
	t.meters.finished(ctx, t.work, g, t.Stream.Now())
	return nil
}

// arm sets the next timer of a grant, or of its candidate, whichever comes first. While the cause
// has no answer the timer carries it on. Whoever has lost the lease leaves the timer to the worker
// that has the message now.
func (t *task) arm(ctx context.Context, g grant.Grant, answered bool) error {
	g = g.AsStored()
	due := g.Due().At
	if due.IsZero() || g.Status == grant.Forgotten {
		return nil
	}
	if err := t.stillThere(ctx); err != nil {
		return err
	}
	if !t.m.Held() {
		return consumers.Retry(consumers.ErrLeaseLost, time.Second)
	}
	now := t.Stream.Now()
	if every := t.provider.Policy.ProfileEvery; every > 0 && answered {
		due = earlier(due, now.Add(every))
	}
	if floor := now.Add(t.provider.Policy.Floor); due.Before(floor) {
		due = floor // never as fast as timers fire
	}
	work := t.work
	work.Mark, work.Deferrals = g.Mark(), 0
	work = work.PutOff(due)
	if answered {
		work = g.NextTimer(due)
	}
	if err := t.Stream.Arm(ctx, t.key, due, work); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
