package refresh_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// A pair that was parked for an unproven login stays with that login, whatever work finds it.
func TestAPairParkedForALoginStaysWithIt(t *testing.T) {
	for _, proven := range []bool{true, false} {
		for _, stranger := range []bool{true, false} {
			t.Run(fmt.Sprint("proven=", proven, " stranger=", stranger), func(t *testing.T) {
				w := newWorld(t)
				if proven {
					w.login("a", 70*time.Second)
				}
				token := w.candidate("x", -time.Second)
				if stranger {
					w.strangers = map[string]error{}
					for n := range 9 {
						w.strangers[fmt.Sprintf("access-x-%d", n)] = grant.ErrSubjectMismatch
					}
				}
				w.crashParked(t.Context(), loginWork(token), 1)
				w.settle(loginWork(token), 2)
				for range 4 {
					if _, ok := w.timers[key]; ok {
						w.fire()
					}
				}
				g := mustStored(w)
				if w.reuse > 0 ||
					stranger && g.Pair.Refresh.Reveal() != "" && g.Pair.Refresh.Reveal()[0] == 'x' {
					t.Errorf("stored %s, reuse %d", g.Pair.Refresh.Reveal(), w.reuse)
				}
			})
		}
	}
}

// Two logins that wait: the wake of each is about it, whichever would have its turn.
func TestEachLoginHasItsTurnUnderItsOwnName(t *testing.T) {
	for _, proven := range []bool{true, false} {
		t.Run(fmt.Sprint("proven=", proven), func(t *testing.T) {
			w := newWorld(t)
			if proven {
				w.login("a", 90*time.Second)
			}
			l1 := w.candidate("b", 90*time.Second)
			var l2 string
			w.userinfo = &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502}
			if proven {
				w.userinfo = &grant.Fault{
					Class:      grant.Throttled,
					Op:         "userinfo",
					Status:     429,
					RetryAfter: 10 * time.Second,
				}
			}
			w.setAt(func(effect string) error {
				if effect == "userinfo" && l2 == "" {
					l2 = w.candidate("c", 90*time.Second)
				}
				return nil
			})
			w.settle(loginWork(l1), 1)
			w.userinfo = nil
			delete(w.timers, key)
			w.settle(loginWork(l2), 1)
			began := w.now()
			n := 0
			for ; n < 60; n++ {
				if _, ok := w.timers[key]; !ok {
					break
				}
				w.fire()
			}
			e, _ := w.outcomeOf(loginCause(l2))
			if e.ID != "" && n == 60 && w.now().Sub(began) < 5*time.Minute ||
				mustStored(w).Pair.Refresh.Reveal()[0] != 'c' {
				t.Error("the newer login is never looked at")
			}
		})
	}
}

// A failed login of a new user is told, though the next command replaces its message.
func TestALoginsOutcomeIsToldWhereNothingIsProven(t *testing.T) {
	w := newWorld(t)
	token := w.candidate("a", 900*time.Second)
	w.userinfo = &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502}
	w.settle(loginWork(token), 1)
	w.fire()
	w.away("publish")
	a := w.timers[key]
	w.advance(a.at.Sub(w.now()))
	if err := w.deliver(t.Context(), a.work, 1); err == nil {
		t.Fatal("no failure")
	}
	w.setAt(func(string) error { return nil })
	w.userinfo = nil
	w.settle(work("r1"), 1)
	for range 3 {
		if _, ok := w.timers[key]; ok {
			w.fire()
		}
	}
	if _, ok := w.outcomeOf(loginCause(token)); !ok {
		t.Error("the login has no outcome")
	}
}

// A login that was answered before and is rejected in the course of a request leaves the request
// its own outcome.
func TestARejectionTakesNoRequestsID(t *testing.T) {
	w := newWorld(t)
	w.login("a", 500*time.Second)
	token := w.candidate("x", 900*time.Second)
	w.userinfo = &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502}
	w.settle(loginWork(token), 1)
	for n := 0; !mustStored(w).Candidate.Answered && n < 9; n++ {
		w.fire()
	}
	w.userinfo = nil
	w.strangers = map[string]error{"access-" + token: grant.ErrSubjectMismatch}
	for mustStored(w).Candidate.NextDueAt.After(w.now()) {
		w.advance(time.Second)
	}
	delete(w.timers, key)
	w.settle(work("r1"), 2)
	n := 0
	for _, e := range w.outcomes {
		if e.ID == grant.OutcomeID(key, work("r1").Cause) {
			n++
		}
	}
	if e, _ := w.outcome("r1"); e.Type == schema.MessageRejected {
		t.Error("r1 has no outcome of its own")
	}
}

// A bad login each second does not keep the proven pair from being renewed.
func TestALoginEachSecondStarvesNobody(t *testing.T) {
	w := newWorld(t)
	w.strangers = map[string]error{}
	w.login("a", 50*time.Second)
	for range 120 {
		token := w.candidate("x", 90*time.Second)
		delete(w.families, token)
		w.strangers["access-"+token] = grant.ErrSubjectMismatch
		delete(w.timers, key)
		w.settle(loginWork(token), 1)
		w.advance(time.Second)
		if a, ok := w.timers[key]; ok && !a.at.After(w.now()) {
			w.fire()
		}
	}
	g := mustStored(w)
	if !g.Pair.ExpiresAt.After(w.now()) {
		t.Errorf("the proven access token ran out %v ago, refreshed %d",
			w.now().Sub(g.Pair.ExpiresAt), w.refreshed)
	}
}

// A login that comes between the save of a request's pair and its profile is answered too.
func TestALoginBetweenSaveAndProfileIsAnswered(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.setAt(func(effect string) error {
		if effect == "userinfo" {
			return context.Canceled
		}
		return nil
	})
	ctx, kill := context.WithCancel(t.Context())
	w.setAt(func(effect string) error {
		if effect == "userinfo" {
			kill()
			w.setAt(func(string) error { return context.Canceled })
			return context.Canceled
		}
		return nil
	})
	_ = w.deliver(ctx, work("r1"), 1)
	w.setAt(func(string) error { return nil })
	w.advance(11 * time.Second)
	token := w.candidate("b", 90*time.Second)
	accepted := w.now()
	w.settle(work("r1"), 2) // the login's wake became r1's
	for range 2 {
		w.fire()
	}
	_, named := w.outcomeOf(loginCause(token))
	if !named {
		e, _ := w.outcome("r1")
		t.Errorf("the login is answered by nobody; r1 began at %v, the login came at %v: %s",
			data[schema.Synced](t, e).BeganAt.Sub(start), accepted.Sub(start), e.Type)
	}
}

// A request is being handled when a login comes. The login's wake then has the request's name, for
// the wake may be all that is left of the request. The request's own outcome does not stand for the
// login's.
func TestALoginThatMeetsARequestInHandIsAnswered(t *testing.T) {
	for _, failsFirst := range []bool{false, true} {
		t.Run(fmt.Sprint("failsFirst=", failsFirst), func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 900*time.Second)
			w.settle(work("r0"), 1)
			came := w.candidateMeanwhile("b", 900*time.Second)
			w.settle(work("r1"), 1)
			token := *came
			if failsFirst {
				w.failUntilAnswered(token)
			}
			told := len(w.outcomes)
			w.settle(work("r1"), 1) // the login's wake
			g := mustStored(w)
			if g.Pair.Refresh.Reveal() != token {
				t.Fatal("the login is not proven")
			}
			if len(w.outcomes) == told {
				t.Fatal("nobody is told of the proof")
			}
			d := data[schema.Synced](t, w.outcomes[told])
			if !failsFirst && !grant.SameCause(d.Cause, loginCause(token)) ||
				d.Version != g.Version || d.BeganAt.Before(g.Login.Time) {
				t.Errorf("told %+v", d)
			}
			if _, ok := w.outcome("r1"); !ok {
				t.Error("the request has no outcome")
			}
		})
	}
}

// A user who has just signed in is not told to sign in. A login that is stored just before a
// sign-out, or waits for its turn, has its turn first.
func TestALoginThatWaitsKeepsTheSignOutBack(t *testing.T) {
	dead := func(w *world) {
		w.families[w.login("a", 10*time.Second)].dead = true
		w.settle(work("r1"), 1)
		w.fire()
		w.advance(w.timers[key].at.Sub(w.now()))
	}
	bare := func(w *world) {
		w.login("a", 10*time.Second)
		w.loseRefreshToken()
		w.settle(work("r1"), 1)
		w.advance(11 * time.Second)
	}
	for name, ends := range map[string]func(w *world){"refused": dead, "no refresh token": bare} {
		for _, waits := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " waits=", waits), func(t *testing.T) {
				w := newWorld(t)
				ends(w)
				a := w.timers[key]
				delete(w.timers, key)
				var token string
				if waits {
					token = w.candidate("b", 900*time.Second)
					w.candidateWaits(20 * time.Second) // userinfo was away
				} else {
					decided := false
					w.setAt(func(effect string) error {
						decided = decided || effect == "loaded" || effect == "presented"
						if effect == "save" && decided && token == "" {
							token = w.candidate("b", 900*time.Second)
						}
						return nil
					})
				}
				w.settle(a.work, 1)
				stored := func() string { return mustStored(w).Pair.Refresh.Reveal() }
				for n := 0; n < 60 && len(w.timers) > 0 && stored() != token; n++ {
					w.fire()
				}
				if w.told()[schema.UserReauthRequired] > 0 || stored() != token {
					t.Errorf("told %v", w.told())
				}
			})
		}
	}
}

// What is asked for when a login waits is done on what the login proves, and answered by its name.
func TestARequestThatProvesALoginIsAnsweredAfterIt(t *testing.T) {
	w := newWorld(t)
	w.login("a", 900*time.Second)
	w.settle(work("r0"), 1)
	token := w.candidate("b", 900*time.Second)
	asked := work("r1")
	asked.Want = schema.WantTokens
	w.settle(asked, 1)
	if e, ok := w.outcomeOf(loginCause(token)); !ok || data[schema.Synced](t, e).Refreshed {
		t.Errorf("the login is told %s", e.Data)
	}
	if e, ok := w.outcome("r1"); !ok || !data[schema.Synced](t, e).Refreshed {
		t.Errorf("the request for tokens is told %s", e.Data)
	}
	w.settle(loginWork(token), 1) // its own wake, late
	if n := w.told()[schema.UserSynced]; n != 3 || w.refreshed != 1 {
		t.Errorf("%d outcomes, %d refreshes", n, w.refreshed)
	}
}

// The wake of a login may come long after the request whose name it has was answered. The request
// is not answered again.
func TestALateWakeAnswersNoRequestAgain(t *testing.T) {
	w := newWorld(t)
	w.login("a", 900*time.Second)
	w.settle(work("r0"), 1)
	w.candidateMeanwhile("b", 900*time.Second)
	w.settle(work("r1"), 1)
	w.forgetful = true
	w.advance(3 * time.Minute)
	again := work("r1")
	again.Again = true // it was put off meanwhile
	w.settle(again, 1)
	if n := w.told()[schema.UserSynced]; n != 3 || w.publishes != 3 {
		t.Errorf("%d outcomes of a login and two requests, published %d times", n, w.publishes)
	}
}

// A request that proves a login which was told of before, as a failure, is done after it like any
// other.
func TestARequestThatProvesAnAnsweredLoginIsDone(t *testing.T) {
	w := newWorld(t)
	w.login("a", 900*time.Second)
	w.settle(work("r0"), 1)
	token := w.candidate("b", 900*time.Second)
	w.failUntilAnswered(token)
	asked := work("r1")
	asked.Want = schema.WantTokens
	w.settle(asked, 1)
	e, ok := w.outcome("r1")
	if !ok || !data[schema.Synced](t, e).Refreshed || mustStored(w).Candidate != nil {
		t.Errorf("the request for tokens is told %s", e.Data)
	}
}

// A command does not wait for as long as a login that cannot be proven may wait.
func TestACommandDoesNotWaitForALoginThatWaitsLong(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.loseRefreshToken()
	w.settle(work("r0"), 1)
	w.candidate("b", 900*time.Second)
	turn := w.candidateWaits(time.Hour)
	w.advance(11 * time.Second)
	delete(w.timers, key)
	w.settle(work("r1"), 1)
	e, ok := w.outcome("r1")
	if !ok || e.Type != schema.UserRefreshFailed || w.told()[schema.UserReauthRequired] != 0 {
		t.Errorf("told %v", w.told())
	}
	if a := w.timers[key]; a.at.Before(turn) || grant.IsCommand(a.work.Cause) {
		t.Errorf("%+v waits", a)
	}
}

type holdAll struct{ quietGuard }

func (h *holdAll) Wait(time.Time) time.Duration                { return h.wait() }
func (h *holdAll) WaitToPresent(time.Time, bool) time.Duration { return h.wait() }

// Work that was decided, not told, and then put off for another side of the grant is told in the
// end.
func TestWorkThatWaitsProvesNothingOfItsOwnOutcome(t *testing.T) {
	w := newWorld(t)
	q := &holdAll{quietGuard{w: w}}
	w.guard = q
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1)
	w.candidate("b", 900*time.Second)
	w.candidateWaits(10 * time.Second) // the login waits: the provider was out
	w.profile.Name = "changed"
	asked := work("r1")
	delete(w.timers, key)
	w.away("publish")
	if err := w.deliver(t.Context(), asked, 1); err == nil {
		t.Fatal("told")
	}
	w.setAt(func(string) error { return nil })
	w.advance(11 * time.Second)            // the login is due
	q.until = w.now().Add(5 * time.Second) // Retry-After
	w.settle(asked, 2)
	w.fire()
	w.fire()
	w.fire()
	changed := func(e schema.Event) bool {
		return strings.Contains(string(e.Data), `"changed":["name"]`)
	}
	if !slices.ContainsFunc(w.outcomes, changed) {
		t.Error("the outcome with the changed profile is never published")
	}
}

// As long as userinfo names no user at all, no login is rejected for it.
func TestUserinfoThatNamesNobodyRejectsNobody(t *testing.T) {
	w := newWorld(t)
	token := w.candidate("a", 90*time.Second)
	w.userinfo = grant.ErrAccessRefused
	w.settle(loginWork(token), 1)
	for n := 0; n < 300 && len(w.timers) > 0 && mustStored(w).Candidate != nil; n++ {
		w.fire()
	}
	if w.told()[schema.MessageRejected] != 0 {
		t.Error("the login is thrown away because userinfo names no user at all")
	}
}

// A record that an older renewd wrote does not say at which version its outcome was decided.
func TestAnOutcomeOfAnOlderRecordIsNotToldTwice(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1)
	g := mustStored(w)
	g.Pending.Version = 0
	w.save(g)
	w.forgetful = true
	w.advance(5 * time.Minute / 10)
	w.settle(work("r1"), 1)
	n := map[string]int{}
	for _, e := range w.outcomes {
		if n[e.ID]++; n[e.ID] > 1 {
			t.Errorf("%s stored %d times", e.ID, n[e.ID])
		}
	}
}

// There is one place for a parked pair: the side that has it comes first, so that no other pair
// takes it.
func TestTheSidesOfAGrantShareOneParkedPlace(t *testing.T) {
	w := newWorld(t)
	w.login("a", 24*time.Second) // due in 4 s
	token := w.candidate("x", -time.Second)
	w.crashParked(t.Context(), loginWork(token), 1)
	g := mustStored(w)
	c := *g.Candidate // it has been tried meanwhile: the proven pair is due earlier
	c.NextDueAt = w.now()
	g.Candidate = &c
	w.save(g)
	delete(w.timers, key)
	timer := schema.Cause{ID: "t1", Type: schema.CauseTimer, Source: "/renewd"}
	w.crashParked(t.Context(), grant.Work{Cause: timer, Mark: new(mustStored(w)).Mark()}, 1)
	for range 6 {
		w.settle(loginWork(token), 2)
		if _, ok := w.timers[key]; ok {
			w.fire()
		}
	}
	if w.reuse > 0 {
		t.Error("a spent token was presented although its pair was parked")
	}
}
