package stream

import (
	"context"
	"errors"
	"fmt"
	"github.com/renewd/renewd/internal/topology"
	"time"
)

const (
	// MaxSkew is how far the local clock may be from the server's before Ready says no.
	MaxSkew = 30 * time.Second
	// maxRoundTrip is how long a believed answer may take. The clock is known to within half of the
	// round trip.
	maxRoundTrip = time.Second
	// maxAge is how long a measurement holds: a monotonic clock drifts by some 100 ms a quarter of
	// an hour.
	maxAge = 15 * time.Minute
	// maxApart is how far the two readings of the local clock may move apart before the server's
	// clock is asked again. The readings move apart when the wall clock was set, or when the
	// machine slept and the monotonic clock stood still.
	maxApart = time.Second
	// serversApart is how far the clocks of two servers of a NATS cluster may be apart.
	serversApart = time.Minute
)

// Clock is a machine's clock, read in two ways. Wall is the time of day, which may be set. Mono
// only goes on, from some moment on, and may stand still while the machine sleeps. Both are safe
// for concurrent use.
type Clock struct {
	Wall func() time.Time
	Mono func() time.Duration
}

func systemClock() Clock {
	began := time.Now()
	return Clock{
		Wall: func() time.Time { return time.Now().Round(0) },
		Mono: func() time.Duration { return time.Since(began) },
	}
}

// measurement is the server's clock at one moment of the local clock.
type measurement struct {
	server time.Time
	wall   time.Time
	mono   time.Duration
}

// Now is the server's clock, to within half a second, once SyncClock has succeeded. Until then, Now
// is the local clock. The time goes on by the monotonic clock from the last measurement, so setting
// this machine's clock does not move Now. Timers fire by the server's clock.
func (e *Engine) Now() time.Time {
	m := e.clock.Load()
	if m == nil {
		return e.config.Clock.Wall()
	}
	return m.server.Add(e.config.Clock.Mono() - m.mono)
}

// Skew is how far the server's clock is ahead of the local time of day.
func (e *Engine) Skew() time.Duration {
	if e.clock.Load() == nil {
		return 0
	}
	return e.Now().Sub(e.config.Clock.Wall())
}

// SyncClock measures the clock of the server that leads RENEWALS, because this server fires the
// timers. An answer that took over a second is not believed, and the last measurement stands.
func (e *Engine) SyncClock(ctx context.Context) error {
	sent := e.config.Clock.Mono()
	s, err := e.js.Stream(ctx, e.config.Subjects.Name(topology.Renewals))
	if err != nil {
		return fmt.Errorf("ask the NATS server for its time: stream %s: %w",
			e.config.Subjects.Name(topology.Renewals), err)
	}
	got, wall := e.config.Clock.Mono(), e.config.Clock.Wall()
	server := s.CachedInfo().TimeStamp
	if server.IsZero() {
		return errors.New("ask the NATS server for its time: no time in a stream's info: want " +
			"nats-server 2.10 or newer")
	}
	took := got - sent
	if took > maxRoundTrip {
		return fmt.Errorf("ask the NATS server for its time: the answer took %v, %v at most: "+
			"is the server, or the network, overloaded?", took.Round(time.Millisecond),
			maxRoundTrip)
	}
	e.clock.Store(&measurement{server.Add(took / 2), wall, got})
	return nil
}

// disagree reports whether the two readings of the local clock went apart since the last
// measurement.
func (e *Engine) disagree() bool {
	m := e.clock.Load()
	return m != nil &&
		(e.config.Clock.Wall().Sub(m.wall)-(e.config.Clock.Mono()-m.mono)).Abs() > maxApart
}

// Ready is nil if timers can be trusted: the server's clock was measured not long ago and the local
// clock is near it. A worker must take no message while Ready is an error. Ready sends nothing to
// the server and costs next to nothing.
func (e *Engine) Ready() error {
	m := e.clock.Load()
	if m == nil {
		return errors.New("the NATS server's clock is not known yet: is the server reachable, " +
			"and are the streams there (renewd streams plan)?")
	}
	if age := e.config.Clock.Mono() - m.mono; age > maxAge {
		return fmt.Errorf("the NATS server's clock was last measured %v ago: "+
			"is the server reachable, and does it answer within %v?", age.Round(time.Second),
			maxRoundTrip)
	}
	if skew := e.Skew(); skew.Abs() > MaxSkew {
		return fmt.Errorf("the NATS server's clock is %v ahead of this machine's "+
			"(negative: behind), %v at most: set both by NTP",
			skew.Round(time.Millisecond), MaxSkew)
	}
	return nil
}
