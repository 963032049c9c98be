package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
)

// parked looks after the pairs that wait in PARKED for long: whoever parked them is gone. One that
// the store has gone on without goes. For any other, and where the record is older than the pair
// because the store was restored, the grant is woken, and its renewal applies the pair. A message
// or a record that cannot be read is passed over; only a store or a stream that does not answer
// ends the look.
func (x *walking) parked(ctx context.Context) error {
	subjects := prefixed(x.Engine.config.Subjects, parkedSubject) + ".>"
	x.found.Parked, x.found.Foreign = 0, 0 // of the last look
	for next := uint64(1); ; {
		m, err := x.Engine.read(ctx, Parked, query{Next: subjects, From: next})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("walk %s: %w", Parked, err)
		}
		next = m.Sequence + 1
		if x.Engine.Now().Sub(m.Time) < x.Overdue {
			continue
		}
		if err := x.parcel(ctx, m); err != nil {
			return err
		}
	}
}

func (x *walking) parcel(ctx context.Context, m *jetstream.RawStreamMsg) error {
	provider, user, err := parseUser(x.Engine.config.Subjects, parkedSubject, m.Subject)
	p, perr := parcelOf(m)
	if err = errors.Join(err, perr); err != nil {
		x.count(&x.found.Foreign)
		x.Engine.foreign(ctx, m, err)
		return nil
	}
	k := grant.Key{Provider: provider, User: user}
	g, err := x.Store.Load(ctx, k)
	gone := errors.Is(err, grant.ErrNotFound)
	switch {
	case errors.Is(err, grant.ErrUnreadable):
		x.count(&x.found.Foreign)
		x.Logger.ErrorContext(ctx, "a pair is parked whose record cannot be read: a login, or the lost key, brings it back",
			"grant", k, "error", err)
		return nil
	case err != nil && !gone:
		return fmt.Errorf("look at the grant of a parked pair: %w", err)
	case gone || leftOver(p, g):
		x.count(&x.found.Unparked)
		return x.Engine.Unpark(ctx, k, m.Sequence)
	}
	x.count(&x.found.Parked)
	if g.Claim != nil && g.Claim.Until.After(x.Engine.Now()) {
		return nil // its worker is at it
	}
	if err := x.wakes.Wait(ctx); err != nil {
		return err
	}
	_, err = x.Engine.wakeLost(ctx, k, repair(g.Due()))
	return err
}

// leftOver reports whether the store has gone on without the parcel: its parent is no longer a
// stored token, as a later pair was saved or a login is there; or, where the provider gives the
// same token again, the record was refreshed since.
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
