package refresh_test

import (
	"context"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/internal/grant"
)

// quietGuard believes everything and obeys each Retry-After, as a guard does once it holds for all.
// It counts permits too.
type quietGuard struct {
	w       *world
	since   time.Time // logins after it need not wait
	until   time.Time
	faults  []*grant.Fault
	permits int
	hold    error  // why it cannot say anything of a refusal
	held    string // why it does not believe one
	alone   bool   // no other user is renewed
}

func (q *quietGuard) Report(f *grant.Fault, _ bool) {
	q.faults = append(q.faults, f)
	if f != nil && f.Class == grant.Throttled {
		q.since, q.until = q.w.now(), q.w.now().Add(f.RetryAfter)
	}
}
func (q *quietGuard) wait() time.Duration { return max(0, q.until.Sub(q.w.now())) }
func (q *quietGuard) Wait(login time.Time) time.Duration {
	if login.After(q.since) {
		return 0
	}
	return q.wait()
}
func (q *quietGuard) WaitToPresent(login time.Time, _ bool) time.Duration { return q.Wait(login) }
func (q *quietGuard) Renewing() bool                                      { return !q.alone }

func (q *quietGuard) Withhold(context.Context, grant.Verdict) (string, error) {
	return q.held, q.hold
}

func guarded(w *world) (*refresh.Consumer, *quietGuard) {
	q := &quietGuard{w: w}
	w.guard, w.limiter = q, permits{q}
	return w.consumer(), q
}

type permits struct{ *quietGuard }

func (p permits) Wait(context.Context) error { p.permits++; return nil }

// calls counts what reaches the provider.
func calls(w *world) *int {
	n := new(int)
	w.setAt(func(effect string) error {
		if effect == "present" || effect == "userinfo" {
			*n++
		}
		return nil
	})
	return n
}

// The guard, which knows for all workers, hears what a throttling answer asks for, and its wait is
// kept.
func TestThrottledProviderIsLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.refuse = &grant.Fault{Class: grant.Throttled, Status: 429, RetryAfter: time.Minute}
	c, q := guarded(w)
	n := calls(w)
	current.Store(w, work("r1"))
	for nth := range 3 {
		if err := c.Handle(context.Background(), message(uint64(nth+1))); err != nil {
			t.Fatal(err)
		}
	}
	if *n != 1 {
		t.Errorf("a provider that asked for a minute was called %d times", *n)
	}
	if len(q.faults) != 1 || q.faults[0].RetryAfter != time.Minute {
		t.Errorf("the guard heard %v", q.faults)
	}
	if wait := w.timers[key].at.Sub(w.now()); wait < time.Minute {
		t.Errorf("the next try is after %v", wait)
	}
}

// A user who has signed in since the trouble began does not wait behind it, where the guard says
// so.
func TestANewerLoginDoesNotWaitBehindTheOthers(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	c, q := guarded(w)
	q.since, q.until = w.now(), w.now().Add(time.Hour)
	n := calls(w)
	current.Store(w, work("r1"))
	if err := c.Handle(context.Background(), message(1)); err != nil || *n != 0 {
		t.Fatalf("%v, and %d calls in the pause", err, *n)
	}
	w.advance(time.Second)
	w.login("b", 10*time.Second)
	current.Store(w, work("r2"))
	if err := c.Handle(context.Background(), message(1)); err != nil || *n != 2 {
		t.Errorf("%v, and %d calls for a login after it began", err, *n)
	}
}

// Each call takes a permit, userinfo too; but for a replay, which the grace window does not wait
// for.
func TestEachCallButAReplayTakesAPermit(t *testing.T) {
	w := newWorld(t)
	w.grace = 30 * time.Second
	w.login("a", 10*time.Second)
	w.lose = 1
	c, q := guarded(w)
	n := calls(w)
	current.Store(w, work("r1"))
	if err := c.Handle(context.Background(), message(1)); err != nil {
		t.Fatal(err)
	}
	if *n != 3 || q.permits != 2 {
		t.Errorf("%d calls with %d permits: want a refresh, its replay and userinfo with two",
			*n, q.permits)
	}
}
