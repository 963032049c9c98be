package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// EachParked shows the sealed content of each parcel of PARKED, including parcels parked meanwhile.
func (e *Engine) EachParked(ctx context.Context, see func(sealed []byte)) error {
	subjects := topology.Prefixed(e.config.Subjects, topology.ParkedFront) + ".>"
	return e.each(ctx, topology.Parked, subjects, func(m *jetstream.RawStreamMsg) error {
		see(m.Data)
		return nil
	})
}

// EachLogin shows each login accepted and not settled: in LOGINS, or put off. A message that cannot
// be understood as a login comes with an error. A login put off meanwhile may be shown twice, and
// no login is missed.
func (e *Engine) EachLogin(ctx context.Context, see func(schema.Event, error)) error {
	decode := func(subject string, m *jetstream.RawStreamMsg) error {
		see(e.config.Subjects.Decode(own(schema.Header(m.Header)), m.Data, schema.Arrival{
			Subject:  subject,
			Stream:   e.config.Subjects.Name(topology.Logins),
			Sequence: m.Sequence,
			Time:     m.Time,
		}))
		return nil
	}
	login := topology.Prefixed(e.config.Subjects, string(schema.UserLogin))
	// First LOGINS, since a login put off goes from there to RENEWALS.
	seals := func(m *jetstream.RawStreamMsg) error {
		if e.sealsNothing(m.Subject) {
			return nil
		}
		return decode(m.Subject, m)
	}
	err := e.each(ctx, topology.Logins, topology.AllSubjects, seals)
	if err != nil {
		return err
	}
	deferred := topology.Prefixed(e.config.Subjects, topology.DeferredFront)
	return e.each(ctx, topology.Renewals, deferred+".>", func(m *jetstream.RawStreamMsg) error {
		if _, kind := e.deferredOf(m.Subject); kind != schema.UserLogin {
			return nil
		}
		// The user's name comes after timer or due.
		_, user, _ := strings.Cut(strings.TrimPrefix(m.Subject, deferred+"."), ".")
		return decode(login+"."+user, m)
	})
}

// LoginsKept is how long a login waits in LOGINS at most. Zero: forever.
func (e *Engine) LoginsKept(ctx context.Context) (time.Duration, error) {
	name := e.config.Subjects.Name(topology.Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	return s.CachedInfo().Config.MaxAge, nil
}

// each shows the messages of a stream with these subjects, in order.
func (e *Engine) each(
	ctx context.Context, base, subjects string, see func(*jetstream.RawStreamMsg) error,
) error {
	for next := uint64(1); ; {
		m, err := e.read(ctx, base, query{Next: subjects, From: next})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("walk %s: %w", base, err)
		}
		if err := see(m); err != nil {
			return err
		}
		next = m.Sequence + 1
	}
}
