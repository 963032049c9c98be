package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// EachParked shows what is sealed in each parcel of PARKED, whatever is parked meanwhile included.
func (e *Engine) EachParked(ctx context.Context, see func(sealed []byte)) error {
	subjects := prefixed(e.config.Subjects, parkedSubject) + ".>"
	return e.each(ctx, Parked, subjects, func(m *jetstream.RawStreamMsg) { see(m.Data) })
}

// EachLogin shows each login that was accepted and is not settled: in LOGINS, or put off. What is
// no login that can be understood comes with an error. A login that is put off meanwhile may be
// shown twice, and none is missed.
func (e *Engine) EachLogin(ctx context.Context, see func(schema.Event, error)) error {
	decode := func(subject string, m *jetstream.RawStreamMsg) {
		see(e.config.Subjects.Decode(own(schema.Header(m.Header)), m.Data, schema.Arrival{
			Subject: subject, Stream: e.config.Subjects.Name(Logins), Sequence: m.Sequence, Time: m.Time,
		}))
	}
	login := prefixed(e.config.Subjects, string(schema.UserLogin))
	// First LOGINS, since a login that is put off goes from there to RENEWALS.
	err := e.each(ctx, Logins, allSubjects, func(m *jetstream.RawStreamMsg) { decode(m.Subject, m) })
	if err != nil {
		return err
	}
	deferred := prefixed(e.config.Subjects, deferredSubject)
	return e.each(ctx, Renewals, deferred+".>", func(m *jetstream.RawStreamMsg) {
		_, user, _ := strings.Cut(strings.TrimPrefix(m.Subject, deferred+"."), ".") // after timer or due
		decode(login+"."+user, m)
	})
}

// LoginsKept is how long a login waits in LOGINS at most. Zero: for ever.
func (e *Engine) LoginsKept(ctx context.Context) (time.Duration, error) {
	name := e.config.Subjects.Name(Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	return s.CachedInfo().Config.MaxAge, nil
}

// each shows the messages of a stream that have one of these subjects, in order.
func (e *Engine) each(
	ctx context.Context, base, subjects string, see func(*jetstream.RawStreamMsg),
) error {
	for next := uint64(1); ; {
		m, err := e.read(ctx, base, query{Next: subjects, From: next})
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("walk %s: %w", base, err)
		}
		see(m)
		next = m.Sequence + 1
	}
}
