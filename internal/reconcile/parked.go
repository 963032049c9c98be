package reconcile

import (
	"context"
	"errors"
	"fmt"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
)

// parked looks after the pairs that wait in PARKED for long: the worker that parked such a pair is
// gone. A pair is removed if the store has gone on without it. For any other pair the grant is
// woken, and its renewal applies the pair. This also holds where the record is older than the pair
// because the store was restored. An unreadable message or record is passed over. Only an error of
// the store or a stream ends the look.
func (x *walking) parked(ctx context.Context) error {
	x.found.Parked, x.found.Foreign = 0, 0 // of the last look
	return x.Engine.WalkParked(ctx, func(p stream.ParkedPair) error {
		if x.Engine.Now().Sub(p.Time) < x.Overdue {
			return nil
		}
		return x.parcel(ctx, p)
	})
}

func (x *walking) parcel(ctx context.Context, p stream.ParkedPair) error {
	if p.Err != nil {
		x.count(&x.found.Foreign)
		return nil
	}
	k := p.Key
	g, err := x.Store.Load(ctx, k)
	gone := errors.Is(err, grant.ErrNotFound)
	switch {
	case errors.Is(err, grant.ErrUnreadable):
		x.count(&x.found.Foreign)
		x.Logger.ErrorContext(ctx, "a pair is parked whose record cannot be read: a login, or "+
			"the lost key, brings it back",
			"grant", k, "error", err)
		return nil
	case err != nil && !gone:
		return fmt.Errorf("look at the grant of a parked pair: %w", err)
	case gone || leftOver(p.Parcel, g):
		x.count(&x.found.Unparked)
		return x.Engine.Unpark(ctx, k, p.Sequence)
	}
	x.count(&x.found.Parked)
	if g.Claim != nil && g.Claim.Until.After(x.Engine.Now()) {
		return nil // a worker is handling the grant
	}
	if err := x.wakes.Wait(ctx); err != nil {
		return err
	}
	_, err = x.Engine.WakeLost(ctx, k, repair(g.Due()))
	return err
}

// leftOver reports whether the store has gone on without the parcel. Then its parent is no longer a
// stored token, as a later pair was saved or a login is there. Or the provider gives the same token
// again, and the record was refreshed since.
func leftOver(p grant.Parcel, g grant.Grant) bool {
	if g.Status == grant.Forgotten {
		return true
	}
	if p.Parent == "" || p.Version > g.Version {
		return false
	}
	holder, ok := g.Holder(p.Parent)
	return !ok || holder.RefreshedAt.After(p.Time)
}
