package sink

import (
	"context"
	"sync"
	"time"
)

const (
	// doubtful is how many users' outcomes must fail in a row before the target is at fault.
	doubtful = 5
	// probeMin and probeMax bound the wait between two tries of a target that is down.
	probeMin = time.Second
	probeMax = time.Minute
	// throttleMax bounds the wait for a throttling target, even if the target asks for more.
	throttleMax = time.Hour
)

// breaker stops all deliveries of a sink while its target is down, but for one at a time. A breaker
// is safe for concurrent use.
type breaker struct {
	mu      sync.Mutex
	failed  map[string]bool // users whose outcomes failed since the last success
	since   time.Time       // zero: the target works, as far as is known
	why     string
	until   time.Time // no try before
	wait    time.Duration
	probing bool
	changed chan struct{} // closed when anything changes
}

func newBreaker() *breaker {
	return &breaker{failed: map[string]bool{}, changed: make(chan struct{})}
}

// enter waits until a delivery may begin. probe: this delivery finds out whether the target works
// again. After a nil error the caller must call leave.
func (b *breaker) enter(ctx context.Context) (probe bool, err error) {
	for {
		b.mu.Lock()
		changed, left := b.changed, time.Until(b.until)
		switch {
		case ctx.Err() != nil:
			b.mu.Unlock()
			return false, context.Cause(ctx)
		case b.since.IsZero():
			b.mu.Unlock()
			return false, nil
		case left <= 0 && !b.probing:
			b.probing = true
			b.mu.Unlock()
			return true, nil
		case b.probing:
			left = probeMax
		}
		b.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// leave notes how a delivery of the user's outcome ended; nil: well, or unknown if the caller was
// told to stop. recovered is when the target went down, if this delivery ended the downtime.
func (b *breaker) leave(user string, probe bool, f *Fault, stopped bool) (recovered time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe {
		b.probing = false
		defer b.tell()
	}
	now := time.Now()
	switch {
	case stopped:
	case f.done() || f.Blame == Refused: // the target answers
		if recovered = b.since; recovered.IsZero() {
			clear(b.failed)
		} else {
			b.close()
		}
	case f.Blame == Throttled:
		b.open(now, f)
		b.until = later(b.until, now.Add(min(max(f.After, probeMin), throttleMax)))
	case f.Blame == Unreachable, !b.since.IsZero():
		if b.since.IsZero() || probe {
			b.open(now, f)
			b.wait = min(max(2*b.wait, probeMin), probeMax)
			b.until = later(b.until, now.Add(b.wait))
		}
	case f.Blame == Unclear:
		b.failed[user] = true
		if len(b.failed) >= doubtful {
			b.open(now, f)
			b.wait = probeMin
			b.until = now.Add(b.wait)
		}
	}
	return recovered
}

func (b *breaker) open(now time.Time, f *Fault) {
	if b.since.IsZero() {
		b.since = now
	}
	b.why = f.Error()
}

func (b *breaker) tell() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// down is since when the target is down, and why; zero: the target works.
func (b *breaker) down() (time.Time, string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.since, b.why
}

// downSince has the target down since the time at which an earlier run of the sink found the fault.
func (b *breaker) downSince(since time.Time, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since, b.why = since, why
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// reset has all outcomes tried at once, as if no delivery had failed.
func (b *breaker) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.close()
}

// close lets all deliveries through again. The caller holds mu.
func (b *breaker) close() {
	b.since, b.until, b.wait, b.why = time.Time{}, time.Time{}, 0, ""
	clear(b.failed)
	b.tell()
}
