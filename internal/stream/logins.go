package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/topology"
)

// logins is the known state of the LOGINS stream.
type logins struct {
	busy    chan struct{} // held by a caller while it looks or reads
	created time.Time
	read    time.Duration // when the look that found created began, by the monotonic clock
	highest uint64        // highest sequence asked for so far
}

// loginsAge is how long LOGINS' creation time is believed without a new look.
const loginsAge = time.Second

// LoginsCreated is when the LOGINS stream with the login of this sequence was created. Creation
// time and sequence together order logins also across a stream that was made again. Ask when the
// login has come. A sequence not above all sequences asked for before may be a new stream's, so
// LoginsCreated looks again. One look answers all callers that asked before the look began.
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
	known := !l.created.IsZero()
	if known && (l.read >= asked || !falls && asked-l.read < loginsAge) {
		return l.created, nil
	}
	began := e.config.Clock.Mono()
	name := e.config.Subjects.Name(topology.Logins)
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
