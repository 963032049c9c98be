package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
)

// quiet is how long the provider is to be left alone; 0 when it may be asked. The user's own login
// is looked at only where others wait: who has signed in since does not wait behind those who are
// refused.
func (t *task) quiet(ctx context.Context) time.Duration {
	if t.provider.Guard == nil {
		return 0
	}
	wait := t.provider.Guard.Wait()
	if wait > 0 {
		if g, err := t.Store.Load(ctx, t.key); err == nil {
			wait = t.provider.Guard.WaitSince(g.LoginAt)
		}
	}
	return wait
}

// later puts the work off: the same cause again when the wait is over, spread so that not all come
// at once.
func (t *task) later(ctx context.Context, wait time.Duration) error {
	spread := time.Duration(t.Rand() * float64(min(wait, 30*time.Second)))
	if err := t.Stream.Arm(ctx, t.key, t.Stream.Now().Add(wait+spread), t.work); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}

// report tells the guard how a presentation ended.
func (t *task) report(g grant.Grant, f *grant.Fault) {
	if t.provider.Guard != nil {
		t.provider.Guard.Report(f, g.Verdict != nil && g.Verdict.Fingerprint == g.Fingerprint())
	}
}

// hold asks why a refusal must not end the grant now: the first two never do, the third one needs
// the guard's word.
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

// pace waits for one call of the provider's rate limit. Each call has its own, but for a replay: it
// must come before the grace window is over.
func (t *task) pace(ctx context.Context) error {
	if t.provider.Limiter == nil {
		return nil
	}
	if err := t.provider.Limiter.Wait(ctx); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
