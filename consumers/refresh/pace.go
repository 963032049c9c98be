package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
)

// quietDefault is how long a provider that throttles without a Retry-After is left alone.
const quietDefault = 5 * time.Second

// heed keeps this process from asking a throttling provider again before it wants to be asked.
func (t *task) heed(f *grant.Fault) {
	if f.Class != grant.Throttled {
		return
	}
	wait := f.RetryAfter
	if wait <= 0 {
		wait = quietDefault
	}
	until := t.Stream.Now().Add(wait).UnixNano()
	for {
		old := t.provider.quietUntil.Load()
		if old >= until || t.provider.quietUntil.CompareAndSwap(old, until) {
			return
		}
	}
}

// quiet is how long the provider still wants to be left alone; 0 when it may be asked.
func (t *task) quiet() time.Duration {
	wait := time.Duration(t.provider.quietUntil.Load() - t.Stream.Now().UnixNano())
	if g := t.provider.Guard; g != nil {
		wait = max(wait, g.Wait())
	}
	return max(0, wait)
}

// later puts the work off: the same cause again when the wait is over, spread so that not all come at once.
func (t *task) later(ctx context.Context, wait time.Duration) error {
	spread := time.Duration(t.Rand() * float64(min(wait, 30*time.Second)))
	if err := t.Stream.Arm(ctx, t.key, t.Stream.Now().Add(wait+spread), t.work); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// report tells the guard how a presentation ended.
func (t *task) report(g grant.Grant, f *grant.Fault) {
	switch {
	case t.provider.Guard == nil:
	case f == nil:
		t.provider.Guard.Report("", false)
	default:
		t.provider.Guard.Report(f.Class, g.Verdict != nil && g.Verdict.Fingerprint == g.Fingerprint())
	}
}

// hold asks why a refusal must not end the grant now: the first two never do, the third one needs the guard's word.
func (t *task) hold(ctx context.Context, g grant.Grant, f *grant.Fault, presented string) (string, error) {
	v := g.Verdict
	if f.Class != grant.Permanent || v == nil || v.Fingerprint != presented || !t.provider.Policy.Final(*v, t.Stream.Now()) {
		return "", nil
	}
	if waits, err := t.Stream.LoginWaits(ctx, t.key); waits || err != nil {
		return "", errors.Join(err, errLoginWaits) // who has just signed in is not told to
	}
	if t.provider.Guard == nil {
		return "", nil
	}
	return t.provider.Guard.Hold(ctx, *v)
}

var errLoginWaits = errors.New("a newer login of this user is about to be stored")

// pace waits for the provider's rate limit.
func (t *task) pace(ctx context.Context) error {
	if t.provider.Limiter == nil {
		return nil
	}
	if err := t.provider.Limiter.Wait(ctx); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
