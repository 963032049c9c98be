package sink

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// Failures of one user never stop the others, those of several in a row do, and a target that is
// down is tried with one outcome at a time.
func TestBreaker(t *testing.T) {
	unclear := &Fault{Blame: Unclear, Err: errors.New("answered 500")}
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker()
		for range 10 * doubtful {
			b.leave("mallory", false, unclear, false)
		}
		if probe, err := b.enter(t.Context()); probe || err != nil {
			t.Fatal("one user's failures stop all", probe, err)
		}
		for i := range doubtful {
			b.leave(fmt.Sprint("u", i), false, unclear, false)
		}
		began := time.Now()
		probe, err := b.enter(t.Context())
		if waited := time.Since(began); !probe || err != nil || waited != probeMin {
			t.Fatalf("after failures of several users: probe %v after %v, %v", probe, waited, err)
		}
		others, stop := context.WithTimeout(t.Context(), time.Hour)
		defer stop()
		if _, err := b.enter(others); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a second one was let in beside a probe: %v", err)
		}
		if since := b.leave("u7", true, nil, false); since.IsZero() {
			t.Error("a success ends it")
		}
		if probe, err := b.enter(t.Context()); probe || err != nil {
			t.Error("it does not work again", probe, err)
		}
	})
}

// Retry-After is heeded, for an hour at most, and waits between probes grow to a minute.
func TestBreakerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreaker()
		waits := func(f *Fault) time.Duration {
			began := time.Now()
			b.leave("u", true, f, false)
			if _, err := b.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		if d := waits(&Fault{Blame: Throttled, After: 90 * time.Second,
			Err: errors.New("429")}); d != 90*time.Second {
			t.Errorf("Retry-After: 90 was waited for %v", d)
		}
		if d := waits(&Fault{Blame: Throttled, After: 24 * time.Hour,
			Err: errors.New("429")}); d != time.Hour {
			t.Errorf("Retry-After: 86400 was waited for %v", d)
		}
		var last time.Duration
		for range 10 {
			last = waits(&Fault{Blame: Unreachable, Err: errors.New("refused")})
		}
		if last != probeMax {
			t.Errorf("the longest wait between probes is %v", last)
		}
	})
}

// The schedule is that of Standard Webhooks.
func TestSchedule(t *testing.T) {
	if got := total(Schedule()); got != 75*time.Hour+35*time.Minute+5*time.Second {
		t.Errorf("it lasts %v", got)
	}
}
