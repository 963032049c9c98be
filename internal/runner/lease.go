package runner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// instant is a moment by two clocks. The monotonic clock is never set. The wall clock goes on while
// the machine is suspended. Each clock sees stalls the other may miss.
type instant struct {
	mono time.Duration // since the clock was made
	wall time.Time
}

type clock struct{ start time.Time }

func newClock() clock { return clock{time.Now()} }

func (c clock) now() instant {
	t := time.Now()
	return instant{t.Sub(c.start), t.Round(0)}
}

// since is the time from i to j, by the clock that saw more time pass.
func (j instant) since(i instant) time.Duration { return max(j.mono-i.mono, j.wall.Sub(i.wall)) }

// lease is one worker's hold on one message. The lease counts from before the last proof: first the
// pull request (the server cannot have delivered earlier), then each heartbeat the server answered.
// A lost lease stays lost, since the server may have given the message away.
type lease struct {
	now    func() instant
	trust  time.Duration // AckWait less a margin for messages under way
	every  time.Duration // between two heartbeats
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	lost  bool
	alive instant // just before the last proof
	sent  instant // of the last heartbeat
	round uint64  // number of the last heartbeat
	keeps []*keeper
	busy  bool // keepers are running
}

// keeper extends something else, a claim for instance, together with the lease.
type keeper struct {
	extend func(context.Context) error
	alive  instant // just before the last success
}

// newLease starts at asked. The margin is a fifth of the server's patience.
func newLease(now func() instant, asked instant, ackWait, every time.Duration) *lease {
	return &lease{
		now:    now,
		trust:  ackWait - ackWait/5,
		every:  every,
		alive:  asked,
		sent:   asked,
		cancel: func(error) {},
	}
}

// held reports whether the lease and all its keepers can be trusted now. The caller holds mu.
func (l *lease) held(now instant) bool {
	if l.lost || now.since(l.alive) >= l.trust {
		l.lost = true
	}
	for _, h := range l.keeps {
		if now.since(h.alive) >= l.trust {
			l.lost = true
		}
	}
	return !l.lost
}

func (l *lease) isHeld() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held(l.now())
}

// due ends the handler's context if the lease is lost. Otherwise due returns the number of the
// heartbeat to send now, or 0, and whether the keepers are to run with the heartbeat.
func (l *lease) due() (round uint64, keep bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	if !l.held(now) {
		l.cancel(fmt.Errorf("%w: nothing renewed it for %v", ErrLeaseLost, l.trust))
		return 0, false
	}
	if now.since(l.sent) < l.every {
		return 0, false
	}
	l.sent = now
	l.round++
	keep = len(l.keeps) > 0 && !l.busy
	l.busy = l.busy || keep
	return l.round, keep
}

// answered notes the server's answer to a heartbeat. Only an answer to the latest heartbeat renews
// the lease. Late answers to earlier ones are ignored.
func (l *lease) answered(round uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if round == l.round && l.held(l.now()) {
		l.alive = l.sent
	}
}

// keep adds a keeper. The keeper's claim was taken after the lease's last proof, so the keeper is
// trusted no longer than the lease.
func (l *lease) keep(extend func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keeps = append(l.keeps, &keeper{extend, l.alive})
}

// extend runs the keepers in turn. A failure is tried again with the next heartbeat, as long as the
// last success can be trusted. A failure that wraps ErrLeaseLost is final.
func (l *lease) extend(ctx context.Context) (failed error) {
	l.mu.Lock()
	keeps := l.keeps
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.busy = false
		l.mu.Unlock()
	}()
	ctx, stop := context.WithTimeout(ctx, l.trust)
	defer stop()
	for _, h := range keeps {
		before := l.now()
		err := h.extend(ctx)
		l.mu.Lock()
		switch {
		case errors.Is(err, ErrLeaseLost):
			l.lost = true
			l.cancel(err)
		case err == nil && l.held(l.now()):
			h.alive = before
		}
		l.mu.Unlock()
		failed = errors.Join(failed, err)
	}
	return failed
}
