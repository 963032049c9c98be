package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
)

// parked looks after the pairs that wait in PARKED for long: whoever parked them is gone. One whose parent is no longer
// the stored token was saved, or a newer login is there: it goes. For any other, and where the record is older than the
// pair because the store was restored, the grant is woken, and its renewal applies the pair.
func (w *walker) parked(ctx context.Context, walk *Walk) error {
	name := w.Engine.config.Subjects.Name(Parked)
	s, err := w.Engine.js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", name, err)
	}
	subjects := prefixed(w.Engine.config.Subjects, parkedSubject) + ".>"
	for next := s.CachedInfo().State.FirstSeq; ; {
		m, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject(subjects))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("walk %s: %w", name, err)
		}
		next = m.Sequence + 1
		if w.Engine.Now().Sub(m.Time) < w.Overdue {
			continue
		}
		if err := w.parcel(ctx, m, walk); err != nil {
			return err
		}
	}
}

func (w *walker) parcel(ctx context.Context, m *jetstream.RawStreamMsg, walk *Walk) error {
	provider, user, err := parseUser(w.Engine.config.Subjects, parkedSubject, m.Subject)
	p, perr := parcelOf(m)
	if err = errors.Join(err, perr); err != nil {
		w.Logger.ErrorContext(ctx, "a parked message is none of renewd's; it is left alone", "sequence", m.Sequence, "error", err)
		return nil
	}
	k := grant.Key{Provider: provider, User: user}
	g, err := w.Store.Load(ctx, k)
	gone := errors.Is(err, grant.ErrNotFound)
	switch {
	case err != nil && !gone:
		return fmt.Errorf("look at the grant of a parked pair: %w", err)
	case gone || p.Parent != "" && p.Parent != g.Fingerprint() && p.Version <= g.Version:
		walk.Unparked++
		return w.Engine.Unpark(ctx, k, m.Sequence)
	}
	walk.Parked++
	if g.Claim != nil && g.Claim.Until.After(w.Engine.Now()) {
		return nil // its worker is at it
	}
	return w.wake(ctx, g.Due())
}
