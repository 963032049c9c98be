package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// effects is the order of effects in a renewal that rotates.
var effects = []string{
	"load", "loaded", "claim", "claimed", "present", "presented", "save", "saved", "userinfo",
	"synced", "save", "saved",
	"publish", "published", "arm", "armed",
}

func TestOneRenewalInOrder(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	var seen []string
	w.setAt(func(effect string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		seen = append(seen, effect)
		return nil
	})
	w.settle(work("r1"), 1)
	head := len(effects) - 4
	if len(seen) != len(effects) || !slices.Equal(seen[:head], effects[:head]) {
		t.Errorf("effects %v", seen)
	}
	g, _ := w.stored()
	if !w.accepted(g) || w.refreshed != 1 || g.Claim != nil {
		t.Errorf("stored pair accepted: %v, rotations %d, claim %v",
			w.accepted(g), w.refreshed, g.Claim)
	}
	if a := w.timers[key]; !a.at.Equal(g.NextDueAt) || a.work.Cause.Type != schema.CauseTimer {
		t.Errorf("armed %+v, record is due %v", a, g.NextDueAt)
	}
}

// leaving reports whether the token is on its way to the provider at this point, or its answer is
// not yet saved. Only there must a worker that finds an expired claim present the token again.
func leaving(n int) bool { return effects[n] == "present" || effects[n] == "presented" || n == 6 }

// atEach runs a test once for every point before and after every effect of a renewal.
func atEach(t *testing.T, test func(t *testing.T, w *world, strike func(do func() error))) {
	atEachN(t, func(t *testing.T, w *world, _ int, strike func(func() error)) {
		test(t, w, strike)
	})
}

func atEachN(t *testing.T, test func(t *testing.T, w *world, n int, strike func(do func() error))) {
	for n := range len(effects) {
		t.Run(fmt.Sprintf("%02d-%s", n, effects[n]), func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 10*time.Second)
			test(t, w, n, func(do func() error) {
				count := 0
				w.setAt(func(string) error {
					w.mu.Lock()
					count++
					hit := count == n+1
					w.mu.Unlock()
					if hit {
						return do()
					}
					return nil
				})
			})
		})
	}
}

// checkAnswered holds what must be true in the end, whatever happened in between.
func (w *world) checkAnswered(cause string) {
	w.t.Helper()
	if w.reuse != 0 {
		w.t.Errorf("%d refresh tokens were reused", w.reuse)
	}
	if w.mostAtAll > 1 {
		w.t.Errorf("%d presentations were in flight at once", w.mostAtAll)
	}
	if _, ok := w.outcome(cause); !ok {
		w.t.Error("the command was not answered")
	}
}

// A worker that dies at any point: from then on nothing it does has an effect.
func TestKilledAtEachStep(t *testing.T) {
	for _, grace := range []time.Duration{0, 30 * time.Second} {
		t.Run(fmt.Sprintf("grace=%v", grace), func(t *testing.T) {
			atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
				w.grace = grace
				ctx, kill := context.WithCancel(context.Background())
				defer kill()
				strike(func() error {
					kill()
					w.setAt(func(string) error { return context.Canceled })
					return context.Canceled
				})
				if err := w.deliver(ctx, work("r1"), 1); err == nil {
					// Killed after the last effect: the ack is lost, the message comes again.
					t.Log("done before the end")
				}
				w.setAt(func(string) error { return nil })
				w.advance(11 * time.Second)
				w.settle(work("r1"), 2)
				w.checkRecovered(grace)
			})
		})
	}
}

// checkRecovered: the grant lives on, or, only where the provider forgives nothing and its answer
// died with the worker, the user is told honestly.
func (w *world) checkRecovered(grace time.Duration) {
	w.t.Helper()
	g, ok := w.stored()
	if !ok {
		w.t.Fatal("the grant is gone")
	}
	if grace == 0 && g.Verdict != nil {
		if g.Verdict.Reason != schema.ReasonRotationLost || w.reuse != 1 {
			w.t.Fatalf("verdict %+v with %d reuses", g.Verdict, w.reuse)
		}
		w.fire()
		w.fire()
		if e, ok := w.outcome("r1"); !ok || e.Type != schema.UserReauthRequired {
			w.t.Errorf("the lost rotation ends in %v", e.Type)
		}
		return
	}
	w.checkAnswered("r1")
	if !w.accepted(g) {
		w.t.Error("the stored refresh token is not the one that the provider accepts")
	}
	if _, ok := w.timers[key]; !ok {
		w.t.Error("a live grant has no timer")
	}
}

// A store whose reply is lost at any point, once.
func TestReplyLostAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		w.grace = 30 * time.Second
		strike(func() error { return errors.New("connection reset") })
		w.settle(work("r1"), 1)
		if _, answered := w.outcome("r1"); !answered {
			w.fire() // a call that never left is tried again by a timer, for the same cause
		}
		w.checkRecovered(w.grace)
		if g, _ := w.stored(); g.Doubt != nil {
			t.Errorf("doubt is left behind: %+v", g.Doubt)
		}
	})
}

// A newer login at each point wins, and nothing of the old one is left.
func TestNewerLoginAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		strike(func() error {
			w.login("b", 90*time.Second)
			return nil
		})
		w.settle(work("r1"), 1)
		w.settle(work("login-b"), 1) // a login wakes the grant
		w.checkAnswered("r1")
		g, _ := w.stored()
		if token := g.Pair.Refresh.Reveal(); token[0] != 'b' {
			t.Errorf("stored %s, the newer login's is lost", token)
		}
		if !w.accepted(g) {
			t.Error("the stored refresh token is not the one that the provider accepts")
		}
	})
}

// The provider refuses the old login's token at the very moment a newer login arrives: the verdict
// is void.
func TestNewerLoginVoidsTheVerdict(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		w.families[mustStored(w).Pair.Refresh.Reveal()].dead = true
		strike(func() error {
			w.login("b", 90*time.Second)
			return nil
		})
		w.settle(work("r1"), 1)
		w.settle(work("login-b"), 1)
		for range 3 {
			if _, ok := w.timers[key]; ok {
				w.fire()
			}
		}
		g := mustStored(w)
		if g.Status != grant.Live || g.Pair.Refresh.Reveal()[0] != 'b' {
			t.Errorf("the newer login is %s with %s", g.Status, g.Pair.Refresh.Reveal())
		}
		for _, e := range w.outcomes {
			if e.Type == schema.UserReauthRequired {
				t.Error("a signed-in user was told to sign in again")
			}
		}
	})
}

func mustStored(w *world) grant.Grant {
	w.t.Helper()
	g, ok := w.stored()
	if !ok {
		w.t.Fatal("no grant")
	}
	return g
}

// Erased at each point: nothing in flight brings the user back.
func TestErasedAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		strike(func() error { w.erase(); return nil })
		w.settle(work("r1"), 1)
		if _, ok := w.stored(); ok {
			t.Error("an erased user is back")
		}
	})
}

// Erased and signed in again at each point: nothing of the old is left.
func TestErasedAndLoggedInAgainAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		old := mustStored(w).Version
		strike(func() error {
			w.erase()
			w.advance(time.Second)
			w.login("b", 90*time.Second)
			return nil
		})
		w.settle(work("r1"), 1)
		w.settle(work("login-b"), 1)
		g := mustStored(w)
		if g.Pair.Refresh.Reveal()[0] != 'b' || g.Version <= old || !w.accepted(g) {
			t.Errorf("stored %s at version %d after %d", g.Pair.Refresh.Reveal(), g.Version, old)
		}
	})
}

// Another worker with the same message, at each point: only one of them presents the token.
func TestSecondWorkerAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		strike(func() error {
			w.setAt(func(string) error { return nil })
			if err := w.deliver(context.Background(), work("r1"), 2); err != nil {
				t.Logf("the second worker steps back: %v", err)
			}
			return nil
		})
		w.settle(work("r1"), 1)
		w.checkAnswered("r1")
		if w.refreshed != 1 || w.replays != 0 {
			t.Errorf("%d rotations, %d replays for one command", w.refreshed, w.replays)
		}
		if g := mustStored(w); !w.accepted(g) {
			t.Error("the stored refresh token is not the one that the provider accepts")
		}
	})
}

// A worker stalled past its claim at each point, while another one takes over.
func TestStalledPastTheClaimAtEachStep(t *testing.T) {
	atEachN(t, func(t *testing.T, w *world, n int, strike func(func() error)) {
		w.grace = time.Minute
		strike(func() error {
			w.setAt(func(string) error { return nil })
			w.advance(11 * time.Second)
			w.settle(work("r1"), 2)
			w.advance(time.Second)
			return nil
		})
		w.settle(work("r1"), 1)
		if leaving(n) {
			// The stalled call is still open while the other worker asks: its claim has run out.
			w.mostAtAll = 1
		} else if w.replays != 0 {
			t.Errorf("a token was presented %d times more, without a live claim", w.replays)
		}
		w.checkAnswered("r1")
		g := mustStored(w)
		if !w.accepted(g) {
			t.Errorf("stored %s is not what the provider accepts", g.Pair.Refresh.Reveal())
		}
		if a := w.timers[key]; a.at.Before(w.now()) {
			t.Errorf("armed for %v, it is %v", a.at, w.now())
		}
	})
}
