package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// record is the grant's record in the store, as the job knows the record. If a method returns ok
// false without an error, the record has changed and must be loaded again.
type record struct {
	*job
	seen   time.Time    // when the record was last known to be there; zero: never
	loaded *grant.Grant // the record as last loaded, to be claimed; nil: not loaded
	lost   *grant.Claim // the claim before, if its presentation ended unknown; else nil
}

// errChanged is the verdict if other writers got in between too often.
var errChanged = errors.New("grant was changed meanwhile")

// maxConflicts bounds how often one change is tried. Each further try means that another writer got
// in between.
const maxConflicts = 8

// update saves the result of change, and after a conflict tries again, up to maxConflicts times in
// all, until the result is stored or change no longer applies. change sees the record on g's side,
// makes of it what is to be stored, and tells whether it applies. g becomes the record as stored,
// or, where ok is false, as last read.
func (r *record) update(
	ctx context.Context, g *grant.Grant, change func(cur *grant.Grant) (applies bool),
) (ok bool, _ error) {
	for range maxConflicts {
		next := *g
		if !change(&next) {
			return false, nil
		}
		rev, err := r.Store.Save(ctx, next.AsStored())
		if err == nil {
			*g = next
			g.Revision, r.seen = rev, r.Now()
			return true, nil
		}
		if !errors.Is(err, grant.ErrConflict) {
			return false, retry(err)
		}
		cur, there, err := r.reload(ctx)
		switch {
		case err != nil:
			return false, retry(err)
		case !there:
			return false, nil
		case cur.SavedBy == r.nonce && cur.Version == next.Version:
			*g, _ = next.Beside(cur)
			return true, nil // stored, and the reply was lost
		}
		r.noteTold(&cur)
		if cur, ok = g.Beside(cur); !ok {
			return false, nil
		}
		*g = cur.Resumed(r.turn())
	}
	return false, nil
}

// reload reads the record again. there is false if the user was erased meanwhile.
func (r *record) reload(ctx context.Context) (cur grant.Grant, there bool, _ error) {
	cur, err := r.Store.Load(ctx, r.key)
	switch {
	case errors.Is(err, grant.ErrNotFound), err == nil && cur.Status == grant.Forgotten:
		return cur, false, nil
	}
	return cur, err == nil, err
}

// glance is how long after the record was seen the user cannot have been erased for good: an
// erasure takes longer.
const glance = time.Second

// stillThere looks again whether the user was erased, if the record was last seen longer than
// glance ago: nothing is published of an erased user. An erasure waits for work it can see, but
// cannot see work whose message was replaced meanwhile.
func (r *record) stillThere(ctx context.Context) (ok bool, _ error) {
	if r.seen.IsZero() || r.Now().Sub(r.seen) < glance {
		return true, nil
	}
	_, there, err := r.reload(ctx)
	switch {
	case err != nil && !errors.Is(err, grant.ErrUnreadable):
		return false, retry(err)
	case err == nil && !there:
		return false, nil
	}
	r.seen = r.Now()
	return true, nil
}

// giveBack ends a claim without a presentation, also if the record was written since. A claim left
// behind would say that the token may be spent.
func (r *record) giveBack(ctx context.Context, g *grant.Grant) error {
	stored := g.AsStored()
	stored.Claim = nil
	_, err := r.Store.Save(ctx, stored)
	if errors.Is(err, grant.ErrConflict) {
		return r.giveUp(ctx)
	}
	if err != nil {
		return retry(err)
	}
	return nil
}

// giveUp ends this job's claim on the record as it is now. The token is left as the claim before
// left it.
func (r *record) giveUp(ctx context.Context) error {
	for range maxConflicts {
		g, there, err := r.reload(ctx)
		if err != nil {
			return retry(err)
		}
		if !there || g.Claim == nil || g.Claim.Nonce != r.nonce {
			return nil
		}
		if g.Claim = nil; r.lost != nil {
			g = g.Unknown(*r.lost)
		}
		if _, err = r.Store.Save(ctx, g); err == nil {
			return nil
		}
		if !errors.Is(err, grant.ErrConflict) {
			return retry(err)
		}
	}
	return retry(errChanged)
}

// rest notes that nothing more is to be told of a grant that is not renewed. From then on the
// reconciler passes the grant over.
func (r *record) rest(ctx context.Context, g *grant.Grant) error {
	*g = g.AsStored()
	renewed := g.Status == grant.Live || g.Status == grant.Dormant
	if renewed || g.NextDueAt.IsZero() || g.Status == grant.Forgotten {
		return nil
	}
	*g = g.Rested(r.turn())
	_, err := r.Store.Save(ctx, *g)
	if err != nil && !errors.Is(err, grant.ErrConflict) {
		return retry(err)
	}
	return nil
}
