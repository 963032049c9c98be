package stream

import (
	"context"
	"fmt"
	"time"
)

// logins is what is known of the LOGINS stream.
type logins struct {
	busy    chan struct{} // held by who looks or reads
	created time.Time
	read    time.Duration // when the look that found it began, by the monotonic clock
	highest uint64        // sequence asked for so far
}

// loginsAge is how long LOGINS' creation time is believed without a new look.
const loginsAge = time.Second

// LoginsCreated is when the LOGINS stream was created that the login of this sequence is in: with
// the sequence it orders logins also across a stream that was made anew. Ask when the login has
// come. A sequence that is not above all those asked for before may be a new stream's, and is
// looked up; one look answers everybody who asked before it began.
func (e *Engine) LoginsCreated(ctx context.Context, sequence uint64) (time.Time, error) {
	asked := e.config.Clock.Mono()
	l := &e.logins
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("look when LOGINS was created: %w", context.Cause(ctx))
	}
	falls := sequence <= l.highest
	l.highest = max(l.highest, sequence)
	if known := !l.created.IsZero(); known && (l.read >= asked || !falls && asked-l.read < loginsAge) {
		return l.created, nil
	}
	began := e.config.Clock.Mono()
	name := e.config.Subjects.Name(Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return time.Time{}, fmt.Errorf("look when stream %s was created: %w", name, err)
	}
	created := s.CachedInfo().Created.UTC()
	if !created.Equal(l.created) {
		l.highest = sequence
	}
	l.created, l.read = created, began
	return created, nil
}
