package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// maxLoads bounds how often one delivery loads the record. A further load mostly means that another
// writer got in between.
const maxLoads = 8

// load reads the record, and turns it to the side to work on.
func (r *renewal) load(ctx context.Context, g *grant.Grant) (step, error) {
	if r.loads++; r.loads > maxLoads {
		return done, retry(errChanged)
	}
	r.asked = false
	stored, err := r.Store.Load(ctx, r.key)
	switch {
	case errors.Is(err, grant.ErrNotFound):
		r.record.seen = time.Time{}
		return missing, nil
	case err == nil && stored.Status == grant.Forgotten:
		r.record.seen = time.Time{}
		_, err := r.outcomes.answer(ctx, grant.Mark{}, schema.ReasonUnknownGrant)
		return done, err
	case err != nil:
		return done, retry(err)
	}
	r.record.seen, r.record.loaded = r.Now(), &stored
	if err := r.record.checkRollback(ctx, &stored); err != nil {
		return done, err
	}
	*g = r.choose(stored)
	if grant.SameCause(g.Cause, r.work.Cause) && g.Progress == grant.Saved {
		r.outcomes.met = true
	}
	return tell, nil
}

// tell publishes the outcomes left over by earlier work. If nothing else is to be done, only the
// next timer is missing.
func (r *renewal) tell(ctx context.Context, g *grant.Grant) (step, error) {
	stored := r.record.loaded
	if ok, err := r.outcomes.tell(ctx, stored); !ok || err != nil {
		return load, err
	}
	if stored.Idle(r.given, r.Now()) {
		*g = *stored
		return rearm, nil
	}
	rejected, err := r.outcomes.rejected(ctx, g)
	if rejected || err != nil {
		return rearm, err
	}
	return decide, nil
}

// missing is for work on a grant that is not in the store. A timer is only ever set for a stored
// grant. Unless the user was erased or signed out, the store has lost the record, and this loss is
// told.
func (o *outcomes) missing(ctx context.Context) error {
	if grant.IsCommand(o.given.Cause) || o.work.Mark.Version == 0 {
		_, err := o.answer(ctx, grant.Mark{}, schema.ReasonUnknownGrant)
		return err
	}
	newest, err := o.Outcomes.Newest(ctx, o.key)
	if err != nil {
		return retry(err)
	}
	if newest.Token == "" {
		return nil // erased, or signed out
	}
	o.Logger.Error("a live grant is gone from the store: "+
		"the user is not renewed until the next login",
		"grant", o.key,
		"hint", "was the store restored from a backup that is older than the login?")
	o.meters.found(ctx, o.key.Provider, "missing")
	_, err = o.fail(ctx, grant.Mark{Version: newest.Version + 1}, schema.ReasonUnknownGrant)
	return err
}
