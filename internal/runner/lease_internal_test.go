package runner

import (
	"context"
	"errors"
	"testing"
	"time"
)

// hands is a clock set by hand.
type hands struct{ instant }

func (h *hands) now() instant { return h.instant }

func (h *hands) pass(d time.Duration) { h.mono += d; h.wall = h.wall.Add(d) }

func leaseOf(h *hands) (*lease, context.Context) {
	l := newLease(h.now, h.now(), 10*time.Second, 3*time.Second)
	ctx, cancel := context.WithCancelCause(context.Background())
	l.cancel = cancel
	return l, ctx
}

func TestLeaseCountsFromBeforeTheLastAnsweredBeat(t *testing.T) {
	h := new(hands)
	l, _ := leaseOf(h)
	h.pass(3 * time.Second)
	round, _ := l.due()
	if round != 1 {
		t.Fatalf("beat %d, want the first", round)
	}
	if again, _ := l.due(); again != 0 {
		t.Error("two beats at the same moment")
	}
	h.pass(4 * time.Second)
	l.answered(round)
	h.pass(3 * time.Second) // 7 s after the beat was sent, 3 s after it was answered
	if !l.isHeld() {
		t.Error("lost although a beat was answered")
	}
	h.pass(time.Second)
	if l.isHeld() {
		t.Error("held 8 s after the last proof of an AckWait of 10 s")
	}
}

func TestLeaseIgnoresOldAnswers(t *testing.T) {
	h := new(hands)
	l, _ := leaseOf(h)
	h.pass(3 * time.Second)
	first, _ := l.due()
	h.pass(3 * time.Second)
	l.due()
	l.answered(first)
	h.pass(2 * time.Second)
	if l.isHeld() {
		t.Error("an answer to an older beat extended the lease")
	}
}

func TestLeaseStaysLost(t *testing.T) {
	h := new(hands)
	l, ctx := leaseOf(h)
	h.pass(3 * time.Second)
	round, _ := l.due()
	h.pass(5 * time.Second)
	l.answered(round)
	if l.isHeld() {
		t.Error("an answer brought a lost lease back")
	}
	if round, _ := l.due(); round != 0 {
		t.Error("a lost lease beats")
	}
	if !errors.Is(context.Cause(ctx), ErrLeaseLost) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
}

func TestLeaseEndsWithTheClockThatSawMoreTime(t *testing.T) {
	for name, pass := range map[string]func(*hands){
		"stopped process":   func(h *hands) { h.pass(9 * time.Second) },
		"suspended machine": func(h *hands) { h.wall = h.wall.Add(9 * time.Second) },
		"clock set back": func(h *hands) {
			h.mono += 9 * time.Second
			h.wall = h.wall.Add(-time.Hour)
		},
	} {
		h := new(hands)
		l, _ := leaseOf(h)
		pass(h)
		if l.isHeld() {
			t.Errorf("%s: still held", name)
		}
	}
	h := new(hands)
	l, _ := leaseOf(h)
	h.wall = h.wall.Add(time.Hour)
	l.isHeld()
	h.wall = h.wall.Add(-time.Hour)
	if l.isHeld() {
		t.Error("held again after the clock was set forth and back")
	}
}

func TestClockReadsBothClocks(t *testing.T) {
	c := newClock()
	before := time.Now()
	i := c.now()
	if i.mono < 0 || i.wall.Before(before.Round(0)) || i.wall != i.wall.Round(0) {
		t.Errorf("%+v", i)
	}
}

func TestHooksHangOnTheLease(t *testing.T) {
	h := new(hands)
	l, ctx := leaseOf(h)
	var fails error
	calls := 0
	l.keep(func(context.Context) error { calls++; return fails })
	beat := func(want bool) {
		t.Helper()
		h.pass(3 * time.Second)
		round, hooks := l.due()
		if hooks != want {
			t.Fatalf("hooks %v, want %v", hooks, want)
		}
		if hooks {
			_ = l.extend(ctx)
		}
		l.answered(round)
	}
	beat(true)
	fails = errors.New("store is away")
	beat(true)
	beat(true)
	if !l.isHeld() {
		t.Error("lost after 6 s without a success")
	}
	h.pass(2 * time.Second)
	if l.isHeld() {
		t.Error("held although the hook had no success for 8 s")
	}
	if calls != 3 {
		t.Errorf("%d calls", calls)
	}
}

func TestHookCanEndTheLeaseAtOnce(t *testing.T) {
	h := new(hands)
	l, ctx := leaseOf(h)
	l.keep(func(context.Context) error { return ErrLeaseLost })
	h.pass(3 * time.Second)
	if _, hooks := l.due(); !hooks {
		t.Fatal("no hooks")
	}
	if err := l.extend(ctx); !errors.Is(err, ErrLeaseLost) {
		t.Errorf("%v", err)
	}
	if l.isHeld() || !errors.Is(context.Cause(ctx), ErrLeaseLost) {
		t.Errorf("held, cause %v", context.Cause(ctx))
	}
}

func TestHooksDoNotOverlap(t *testing.T) {
	h := new(hands)
	l, ctx := leaseOf(h)
	l.keep(func(context.Context) error { return nil })
	h.pass(3 * time.Second)
	first, hooks := l.due()
	l.answered(first)
	if !hooks {
		t.Fatal("no hooks")
	}
	h.pass(3 * time.Second)
	if _, hooks = l.due(); hooks {
		t.Error("hooks are to run while they run")
	}
	_ = l.extend(ctx)
	h.pass(3 * time.Second)
	if _, hooks = l.due(); !hooks {
		t.Error("hooks stopped")
	}
}

// A message is exhausted by its fifth delivery, or by a later delivery that takes longer than ten
// seconds. A message made by hand is exhausted by its deliveries alone.
func TestExhausted(t *testing.T) {
	var passed time.Duration
	l := newLease(func() instant { return instant{mono: passed} }, instant{}, time.Minute,
		time.Second)
	for _, tt := range []struct {
		deliveries uint64
		inHand     time.Duration
		lease      *lease
		want       bool
	}{
		{1, 0, l, false}, {4, 10 * time.Second, l, false}, {5, 0, l, true}, {6, 0, l, true},
		{1, time.Hour, l, false}, {2, 10*time.Second + 1, l, true},
		{4, time.Hour, nil, false}, {5, 0, nil, true},
	} {
		m := &Message{Deliveries: tt.deliveries, lease: tt.lease, taken: time.Minute}
		if passed = time.Minute + tt.inHand; m.Exhausted() != tt.want {
			t.Errorf("delivery %d, %v in hand, by hand %v: %v", tt.deliveries, tt.inHand,
				tt.lease == nil, !tt.want)
		}
	}
}
