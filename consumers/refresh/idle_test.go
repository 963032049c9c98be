package refresh_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// idle is how long the users of these tests may go without being asked for.
const idle = time.Hour

// asleep is a world whose user was renewed by timers until nothing had asked for long enough.
func asleep(t *testing.T, sessionMax time.Duration) *world {
	t.Helper()
	w := newWorld(t)
	w.resting = grant.Policy{Idle: idle, SessionMax: sessionMax}
	w.login("a", 10*time.Second)
	w.settle(work("login-a"), 1)
	for range 100 {
		if mustStored(w).Status == grant.Dormant {
			return w
		}
		w.fire()
	}
	t.Fatalf("the user is never left alone: %s", mustStored(w).Status)
	return nil
}

// An idle user is renewed until the time is over, then rests without a timer and without a word,
// and goes on when a service asks.
func TestAnIdleUserRestsUntilAskedFor(t *testing.T) {
	w := asleep(t, 0)
	g := mustStored(w)
	if since := w.now().Sub(start); since < idle || since > idle+2*time.Minute {
		t.Errorf("asleep after %v", since)
	}
	if _, ok := w.timers[key]; ok || !g.Resting() || !w.accepted(g) {
		t.Errorf("a timer %t, due %v, session lives %t", ok, g.NextDueAt, w.accepted(g))
	}
	for _, e := range w.outcomes {
		if e.Type != schema.UserSynced {
			t.Errorf("told %s: nothing has ended", e.Type)
		}
	}
	spent, told := w.refreshed, len(w.outcomes)
	w.advance(48 * time.Hour)
	timer := grant.Work{Cause: schema.Cause{ID: "repair-1", Type: schema.CauseRepair}}
	w.settle(timer, 1) // whatever wakes it that is no command
	if w.refreshed != spent || len(w.outcomes) != told || mustStored(w).Status != grant.Dormant {
		t.Errorf("presented %d times more, told %d times more",
			w.refreshed-spent, len(w.outcomes)-told)
	}
	w.settle(work("r1"), 1)
	w.checkAnswered("r1")
	if g = mustStored(w); g.Status != grant.Live || !w.accepted(g) || w.refreshed != spent+1 ||
		w.timers[key].at.IsZero() {
		t.Errorf("%s, presented %d times more, timer %v",
			g.Status, w.refreshed-spent, w.timers[key].at)
	}
}

// A token that still lives is no reason to let the user rest on: who was asked for is awake.
func TestAskingForAProfileWakesToo(t *testing.T) {
	w := asleep(t, 0)
	g := mustStored(w)
	g.Pair.ExpiresAt, g.Pair.Lifetime = w.now().Add(24*time.Hour), 24*time.Hour
	w.save(g)
	spent := w.refreshed
	w.settle(work("r1"), 1)
	w.checkAnswered("r1")
	if g := mustStored(w); g.Status != grant.Live || w.refreshed != spent ||
		!w.timers[key].at.Equal(g.NextDueAt) {
		t.Errorf("%s, presented %d times more, timer %v",
			g.Status, w.refreshed-spent, w.timers[key].at)
	}
}

// Whatever fails while a user is woken, the request is answered and the session goes on.
func TestADormantUserIsWokenAtEachStep(t *testing.T) {
	for n := range effects {
		w := asleep(t, 0)
		w.grace = 30 * time.Second
		count := 0
		w.setAt(func(string) error {
			if count++; count == n+1 {
				return errAway
			}
			return nil
		})
		w.settle(work("r1"), 1)
		if _, ok := w.outcome("r1"); !ok { // tried again later
			w.fire()
		}
		w.checkAnswered("r1")
		if g := mustStored(w); g.Status != grant.Live || !w.accepted(g) {
			t.Errorf("%d: %s", n, g.Status)
		}
	}
}

// The limit of a session ends it on time, awake or dormant, and says so. Nothing was refused.
func TestASessionEndsAtItsLimit(t *testing.T) {
	for name, limit := range map[string]time.Duration{
		"awake": 10 * time.Minute, "dormant": 3 * time.Hour,
	} {
		w := newWorld(t)
		w.resting = grant.Policy{Idle: idle, SessionMax: limit}
		w.login("a", 10*time.Second)
		w.settle(work("login-a"), 1)
		slept := false
		for range 200 {
			if mustStored(w).Status == grant.SignedOff {
				break
			}
			w.fire()
			slept = slept || mustStored(w).Status == grant.Dormant
		}
		g := mustStored(w)
		if late := w.now().Sub(start) - limit; late < -time.Second || late > 3*time.Second {
			t.Errorf("%s: it ended %v late", name, late)
		}
		if g.Status != grant.SignedOff || g.Pair != (grant.Pair{}) || !g.Resting() ||
			slept != (name == "dormant") {
			t.Errorf("%s: %s, slept %t", name, g.Status, slept)
		}
		if _, ok := w.timers[key]; ok {
			t.Errorf("%s: a timer is left", name)
		}
		last := w.outcomes[len(w.outcomes)-1]
		d, err := schema.Data[schema.SignedOut](last)
		if err != nil || d.Reason != schema.ReasonSessionMax || d.Cause.Type != schema.CauseTimer {
			t.Errorf("%s: %s %+v, %v", name, last.Type, d, err)
		}
		w.settle(work("r1"), 1)
		e, _ := w.outcome("r1")
		f, err := schema.Data[schema.RefreshFailed](e)
		if err != nil || f.Reason != schema.ReasonSignedOut {
			t.Errorf("%s: a request is answered by %+v, %v", name, f, err)
		}
	}
}

// A limit that was removed while the user sleeps leaves no timer that fires for ever.
func TestADormantUserWithoutALimitAnyMoreRests(t *testing.T) {
	w := asleep(t, 3*time.Hour)
	if w.timers[key].at.IsZero() {
		t.Fatal("no timer waits for the end of the session")
	}
	w.resting.SessionMax = 0
	spent := w.refreshed
	w.fire()
	_, again := w.timers[key]
	g := mustStored(w)
	if again || g.Status != grant.Dormant || !g.Resting() || w.refreshed != spent {
		t.Errorf("%s, due %v, a timer is left: %t", g.Status, g.NextDueAt, again)
	}
}

// What is asked for after the limit is answered by the end, whatever fails meanwhile.
func TestASessionIsEndedAtEachStep(t *testing.T) {
	for n := range effects {
		w := newWorld(t)
		w.resting = grant.Policy{SessionMax: 10 * time.Minute}
		w.login("a", 10*time.Second)
		w.settle(work("login-a"), 1)
		w.advance(11 * time.Minute)
		spent, count := w.refreshed, 0
		w.setAt(func(string) error {
			if count++; count == n+1 {
				return errAway
			}
			return nil
		})
		w.settle(work("r1"), 1)
		w.checkAnswered("r1")
		told := 0
		for _, e := range w.outcomes {
			if e.Type == schema.UserSignedOut {
				told++
			}
		}
		if g := mustStored(w); g.Status != grant.SignedOff || told != 1 || w.refreshed != spent {
			t.Errorf("%d: %s, told %d times, presented %d times",
				n, g.Status, told, w.refreshed-spent)
		}
	}
}

// A refresh token that dies unused is presented in time, though its access token lives on.
func TestAnUnusedRefreshTokenIsKeptAlive(t *testing.T) {
	w := newWorld(t)
	w.resting = grant.Policy{Keepalive: 20 * time.Second} // tokens live 100 s here
	w.login("a", 10*time.Second)
	w.settle(work("r1"), 1)
	began, spent := w.now(), w.refreshed
	for n := 1; n <= 3; n++ {
		w.fire()
		since, most := w.now().Sub(began), time.Duration(n)*23*time.Second
		if w.refreshed != spent+n || since > most {
			t.Errorf("after %v: presented %d times, want %d", since, w.refreshed-spent, n)
		}
	}
}

// In the night nothing is renewed by itself, and what is asked for is renewed at once.
func TestNothingIsRenewedOutsideAWindow(t *testing.T) {
	w := newWorld(t)
	opens := start.Truncate(time.Hour).Add(8 * time.Hour)
	closes := opens.Add(time.Hour)
	all, err := grant.ParseWindows("daily " + opens.Format("15:04") + "-" + closes.Format("15:04"))
	if err != nil {
		t.Fatal(err)
	}
	w.resting = grant.Policy{Windows: all}
	w.login("a", 10*time.Second)
	w.settle(work("login-a"), 1)
	at := w.timers[key].at
	if at.Before(opens) || at.After(opens.Add(10*time.Minute)) ||
		!at.Equal(mustStored(w).NextDueAt) {
		t.Fatalf("due %v, opens %v", at, opens)
	}
	w.settle(work("r1"), 1)
	w.checkAnswered("r1")
	spent := w.refreshed
	if at := w.timers[key].at; at.Before(opens) || spent == 0 {
		t.Errorf("asked for at night: presented %d times, due %v", spent, at)
	}
	w.fire()
	if w.refreshed != spent+1 {
		t.Errorf("in the window presented %d times", w.refreshed-spent)
	}
}
