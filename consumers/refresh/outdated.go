package refresh

import (
	"context"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// rotated is a pair that this task has saved.
type rotated struct {
	mark   grant.Mark
	tokens grant.Tokens
}

// look makes sure that g is not older than what was published. A timer's first delivery says so
// itself; a request, a repair and a redelivery ask the streams.
func (t *task) look(ctx context.Context, g grant.Grant) error {
	if !t.work.Unsure(g) && t.m.Deliveries <= 1 {
		return nil
	}
	newest, err := t.Stream.Newest(ctx, t.key)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	t.work.Mark = t.work.Mark.Newest(g.Mark()).Newest(newest)
	if t.work.Mark.Version > g.Version && !t.work.Mark.Supersedes(g) {
		t.Logger.Warn("the stored record is older than what was published; its refresh token is the same, so it goes on from there", "grant", t.key,
			"stored", g.Version, "published", t.work.Mark.Version)
		t.meters.found(ctx, t.key.Provider, "continued")
	}
	return nil
}

// suspend ends the work on a grant whose refresh token is superseded. The token is never presented:
// a provider that takes it for stolen ends the user's session. Where the pair that superseded it is
// at hand, that one is stored instead.
func (t *task) suspend(ctx context.Context, g grant.Grant) error {
	if t.rotated != nil && t.rotated.mark == t.work.Mark {
		t.Logger.Warn("the store has lost a pair that it had acknowledged; it is saved again", "grant", t.key)
		g, err := t.savePair(ctx, g, t.rotated.tokens)
		if err != nil {
			return err
		}
		return t.sync(ctx, g)
	}
	if done, err := t.unparkNewer(ctx, g); done || err != nil {
		return err
	}
	if err := t.noLoginWaits(ctx); err != nil {
		return err
	}
	g, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) {
		if grant.Decide(cur, t.work, t.provider.Policy, t.Stream.Now()) != grant.Suspend {
			return cur, false
		}
		return cur.Superseded(t.turn()), true
	})
	if err != nil {
		return err
	}
	t.Logger.Error("the stored refresh token is superseded and was not presented: the store is older than what was published", "grant", t.key,
		"hint", "was the store restored from a backup? The user's next login ends this; to use the stored tokens all the same: renewd store accept")
	t.meters.found(ctx, t.key.Provider, "suspended")
	return t.finish(ctx, g)
}

// unparkNewer stores the parked pair if it is the latest that is known of the grant. The record
// that it followed is lost, so that its version has to tell, not its parent.
func (t *task) unparkNewer(ctx context.Context, g grant.Grant) (done bool, _ error) {
	parcel, ok, err := t.Stream.Parked(ctx, t.key)
	if err != nil {
		return false, consumers.Retry(err, time.Second)
	}
	if !ok || parcel.Candidate || parcel.Version < t.work.Mark.Version {
		return false, nil
	}
	pair, err := grant.OpenPair(t.Cipher, grant.PurposePark, t.key, parcel.Version, parcel.Sealed)
	if err != nil {
		return false, t.unopened(err)
	}
	g, err = t.applyParked(ctx, g, parcel, pair)
	if err != nil {
		return true, err
	}
	return true, t.sync(ctx, g)
}

// missing is for work on a grant that is not in the store. A timer is only ever set for one that is
// there: unless the user was erased, the store has lost the record, and somebody must say so.
func (t *task) missing(ctx context.Context) error {
	if grant.IsCommand(t.given.Cause) || t.work.Mark.Version == 0 {
		return t.answer(ctx, grant.Mark{}, schema.ReasonUnknownGrant)
	}
	newest, err := t.Stream.Newest(ctx, t.key)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	if newest.Token == "" {
		return nil // erased, or signed out
	}
	t.Logger.Error("a live grant is gone from the store: the user is not renewed until the next login", "grant", t.key,
		"hint", "was the store restored from a backup that is older than the login?")
	t.meters.found(ctx, t.key.Provider, "missing")
	return t.fail(ctx, grant.Mark{Version: newest.Version + 1}, schema.ReasonUnknownGrant)
}
