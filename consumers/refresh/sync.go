package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// sync fetches the profile with the access token, stores it if it changed, and finishes.
func (t *task) sync(ctx context.Context, g grant.Grant) error {
	if !g.Refreshed {
		if wait := t.quiet(ctx); wait > 0 {
			return t.later(ctx, wait)
		}
	}
	if err := t.pace(ctx); err != nil {
		return err
	}
	began := time.Now()
	profile, err := t.provider.Client.UserInfo(ctx, g.Pair.Access, t.key.User)
	switch {
	case errors.Is(err, grant.ErrAccessRefused):
		t.meters.called(ctx, t.key.Provider, "userinfo", &grant.Fault{Class: "refused"}, time.Since(began))
		return t.accessRefused(ctx, g)
	case errors.Is(err, grant.ErrSubjectMismatch):
		t.meters.called(ctx, t.key.Provider, "userinfo", &grant.Fault{Class: "mismatch"}, time.Since(began))
		t.Logger.Error("the provider's userinfo is about another user; nothing of it was stored", "grant", t.key,
			"hint", "check that user ids in user.login are the provider's own, and that the login's tokens belong to that user")
		return t.failed(ctx, g, grant.Failure{Reason: schema.ReasonSubjectMismatch, Own: true, Final: true})
	case err != nil:
		f := asFault("userinfo", err)
		t.meters.called(ctx, t.key.Provider, "userinfo", f, time.Since(began))
		return t.profileFailed(ctx, g, f)
	}
	t.meters.called(ctx, t.key.Provider, "userinfo", nil, time.Since(began))
	p, err := grant.NewProfile(profile)
	if err != nil {
		return t.profileFailed(ctx, g, &grant.Fault{Class: grant.Unknown, Op: "userinfo", Err: err})
	}
	return t.synced(ctx, g, p)
}

func (t *task) synced(ctx context.Context, g grant.Grant, profile grant.Profile) error {
	access := g.Pair.Access
	next, write := g.WithProfile(t.turn(), profile)
	if !write {
		return t.finish(ctx, next)
	}
	next, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if !cur.Pair.Access.Equal(access) || cur.Status != grant.Live {
			return cur, false // a newer login or rotation: sync that one
		}
		next, _ := cur.WithProfile(t.turn(), profile)
		return next, true
	})
	if err != nil {
		return err
	}
	return t.finish(ctx, next)
}

// accessRefused: the access token is not accepted, whatever its expiry says. A token that was got in this very renewal is
// no reason to get another: the provider's userinfo does not know it yet, or is out of order.
func (t *task) accessRefused(ctx context.Context, g grant.Grant) error {
	if g.Refreshed {
		return t.profileFailed(ctx, g, &grant.Fault{Class: grant.Unknown, Op: "userinfo", Status: 401})
	}
	t.work.Want, t.work.MinValid = schema.WantTokens, schema.MaxMinValid*time.Second
	switch next := grant.Decide(g, t.work, t.provider.Policy, t.Stream.Now()); next {
	case grant.Refresh, grant.SignOut:
		return t.step(ctx, g)
	default:
		// Rotated moments ago by somebody else: within the floor, so wait it out.
		return t.failed(ctx, g, grant.Failure{Reason: schema.ReasonProfile, Code: "401"})
	}
}

// profileFailed: after a rotation the renewal is a success without a profile, tried again soon; else it is a failed try.
func (t *task) profileFailed(ctx context.Context, g grant.Grant, f *grant.Fault) error {
	if f.Class == grant.Throttled {
		t.report(g, f) // what else can go wrong with a profile says nothing about refreshing
	}
	t.Logger.Warn("profile not synced", "grant", t.key, "class", f.Class, "error", f)
	if g.Refreshed {
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

// finish publishes the outcome, if there is one, and arms the next timer, both acknowledged by the server. It may run
// again for the same work after a crash: the outcome's id and the timer's cause are the same then.
func (t *task) finish(ctx context.Context, g grant.Grant) error {
	armed := make(chan error, 1)
	go func() { armed <- t.arm(ctx, g) }()
	err := t.publishOutcome(ctx, g)
	if err := errors.Join(err, <-armed); err != nil {
		return consumers.Retry(err, time.Second)
	}
	t.meters.finished(ctx, t.work, g, t.Stream.Now())
	return nil
}

func (t *task) publishOutcome(ctx context.Context, g grant.Grant) error {
	if g.Pending == nil {
		return nil
	}
	return t.publish(ctx, g.Event(t.Source, t.Stream.Now()), g.Mark())
}

// publish stores an outcome once. The stream drops a second one of the same id within its duplicate window; for a
// redelivery beyond that the user's last outcomes are looked at.
func (t *task) publish(ctx context.Context, e schema.Event, m grant.Mark) error {
	if t.m.Deliveries > 1 || t.resumed {
		answered, err := t.Stream.Answered(ctx, t.key, e.ID)
		if err != nil {
			return consumers.Retry(err, time.Second)
		}
		if answered {
			return nil
		}
	}
	if err := t.Stream.PublishMarked(ctx, e, m); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// arm sets the next timer of a live grant. While the cause has no answer the timer carries it on.
func (t *task) arm(ctx context.Context, g grant.Grant) error {
	if g.Status != grant.Live {
		return nil
	}
	if !t.m.Held() {
		// Stalled: another worker may have gone on from our save, and its timer must not be replaced by an older one.
		cur, err := t.Store.Load(ctx, t.key)
		if errors.Is(err, grant.ErrNotFound) || err == nil && cur.Version > g.Version {
			return nil
		}
		if err != nil {
			return err
		}
	}
	at, work := g.NextDueAt, t.work
	work.Mark = g.Mark()
	if g.Pending != nil {
		if every := t.provider.Policy.ProfileEvery; every > 0 {
			at = earlier(at, t.Stream.Now().Add(every))
		}
		work = g.NextTimer(at)
	}
	return t.Stream.Arm(ctx, t.key, at, work)
}
