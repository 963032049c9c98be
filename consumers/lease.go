package consumers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// instant is a moment by two clocks. The monotonic one is never set; the wall clock goes on while
// the machine is suspended. Each sees stalls that the other may not.
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

// since is how much time passed from i to j, by the clock that saw more of it.
func (j instant) since(i instant) time.Duration { return max(j.mono-i.mono, j.wall.Sub(i.wall)) }

// lease is one worker's hold on one message. It counts from before the last thing that is known to
// have worked: first the pull request (the server cannot have delivered earlier), then each beat
// that the server answered. Once it ran out it stays lost: the server may have given the message
// away.
type lease struct {
	now    func() instant
	trust  time.Duration // AckWait less a margin for what is under way
	every  time.Duration // between two beats
	cancel context.CancelCauseFunc

	mu    sync.Mutex
	lost  bool
	alive instant // just before the last proof
	sent  instant // of the last beat
	round uint64  // number of the last beat
	hooks []*hook
	busy  bool // hooks are running
}

// hook is a function that extends something else together with the lease.
type hook struct {
	extend func(context.Context) error
	alive  instant // just before the last success
}

// newLease starts at asked. The margin is a fifth of the server's patience.
func newLease(now func() instant, asked instant, ackWait, every time.Duration) *lease {
	return &lease{now: now, trust: ackWait - ackWait/5, every: every, alive: asked, sent: asked, cancel: func(error) {}}
}

// held reports whether the lease and all that hangs on it can be trusted now. The caller holds mu.
func (l *lease) held(now instant) bool {
	if l.lost || now.since(l.alive) >= l.trust {
		l.lost = true
	}
	for _, h := range l.hooks {
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

// due ends the handler's context if the lease is lost. Otherwise it returns the number of the beat
// to send now, 0 if none is due, and whether the hooks are to be run with it.
func (l *lease) due() (round uint64, hooks bool) {
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
	hooks = len(l.hooks) > 0 && !l.busy
	l.busy = l.busy || hooks
	return l.round, hooks
}

// answered notes the server's answer to a beat. An answer to any but the last one proves nothing
// about the time since.
func (l *lease) answered(round uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if round == l.round && l.held(l.now()) {
		l.alive = l.sent
	}
}

// hold adds a hook. What it extends was taken after the lease's last proof, so it is trusted no
// longer than that.
func (l *lease) hold(extend func(context.Context) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hooks = append(l.hooks, &hook{extend, l.alive})
}

// extend runs the hooks, one after the other. A failure is tried again with the next beat, as long
// as the last success can be trusted; one that wraps ErrLeaseLost is final.
func (l *lease) extend(ctx context.Context) (failed error) {
	l.mu.Lock()
	hooks := l.hooks
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.busy = false
		l.mu.Unlock()
	}()
	ctx, stop := context.WithTimeout(ctx, l.trust)
	defer stop()
	for _, h := range hooks {
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
