package stream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// MaxSkew is how far the local clock may be from the server's before Ready says no.
const MaxSkew = 30 * time.Second

// clock is what is known of the server's clock.
type clock struct {
	offset   atomic.Int64 // server - local, ns
	measured atomic.Bool
}

// Now is the server's clock, to within half a round trip, once SyncClock has succeeded; the local one before. Timers fire
// by it.
func (e *Engine) Now() time.Time { return e.config.Now().Add(e.Skew()) }

// Skew is how far the server's clock is ahead of the local one.
func (e *Engine) Skew() time.Duration { return time.Duration(e.clock.offset.Load()) }

// SyncClock measures the server's clock: that of the server which leads RENEWALS, because it fires the timers.
func (e *Engine) SyncClock(ctx context.Context) error {
	sent := e.config.Now()
	s, err := e.js.Stream(ctx, e.config.Subjects.Name(Renewals))
	if err != nil {
		return fmt.Errorf("ask the NATS server for its time: stream %s: %w", e.config.Subjects.Name(Renewals), err)
	}
	server := s.CachedInfo().TimeStamp
	if server.IsZero() {
		return errors.New("ask the NATS server for its time: no time in a stream's info: want nats-server 2.10 or newer")
	}
	got := e.config.Now()
	e.clock.offset.Store(int64(server.Sub(sent.Add(got.Sub(sent) / 2))))
	e.clock.measured.Store(true)
	return nil
}

// Ready is nil if timers can be trusted: the server's clock is known and the local one is near it.
func (e *Engine) Ready() error {
	if !e.clock.measured.Load() {
		return errors.New("the NATS server's clock is not known yet: is the server reachable, and are the streams there (renewd streams plan)?")
	}
	if skew := e.Skew(); skew.Abs() > MaxSkew {
		return fmt.Errorf("the NATS server's clock is %v ahead of this machine's (negative: behind), %v at most: set both by NTP",
			skew.Round(time.Millisecond), MaxSkew)
	}
	return nil
}
