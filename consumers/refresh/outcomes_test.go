package refresh_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// An outcome that was decided is published once, also when the worker dies before it does, and
// another command takes the place of the message in between.
func TestADecidedOutcomeIsPublishedByTheNextCommand(t *testing.T) {
	for name, decide := range map[string]func(w *world) schema.Type{
		"user.reauth_required": func(w *world) schema.Type {
			w.families["a-1"].dead = true
			w.settle(work("r0"), 1)
			w.fire()
			w.advance(policy.ConfirmMin / 3)
			return schema.UserReauthRequired
		},
		"a changed profile": func(w *world) schema.Type { return schema.UserSynced },
		"superseded": func(w *world) schema.Type {
			w.published = grant.Mark{Version: 1 << 50, Token: "later"}
			return schema.UserRefreshFailed
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 10*time.Second)
			want := decide(w)
			delete(w.timers, key)
			ctx, kill := context.WithCancel(t.Context())
			w.setAt(func(effect string) error {
				if effect == "publish" {
					kill()
					w.setAt(func(string) error { return context.Canceled })
					return context.Canceled
				}
				return nil
			})
			if err := w.deliver(ctx, work("r1"), 1); err == nil {
				t.Fatal("the worker did not die before the publish")
			}
			w.setAt(func(string) error { return nil })
			w.advance(11 * time.Second)
			w.settle(work("r2"), 1) // in place of r1
			if e, ok := w.outcome("r1"); !ok || e.Type != want {
				t.Errorf("r1 has %v, told %v", e.Type, w.told())
			}
			if _, ok := w.outcome("r2"); !ok {
				t.Errorf("r2 has no outcome, told %v", w.told())
			}
			w.settle(work("r3"), 1)
			ids := map[string]int{}
			for _, e := range w.outcomes {
				ids[e.ID]++
			}
			for id, n := range ids {
				if n > 1 {
					t.Errorf("outcome %s is there %d times", id, n)
				}
			}
		})
	}
}

// A renewal that was told and came again decides its outcome again. If its worker dies before it
// looks for published outcomes, the next command finds the outcome in the record. That outcome is
// newer than what was told, and has the same id.
func TestAnOutcomeThatIsDecidedAnewIsNotPublishedTwice(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1) // the first profile: stored with its outcome
	w.advance(85 * time.Second)
	dieAt := func(effect string, nth uint64) {
		t.Helper()
		ctx, kill := context.WithCancel(t.Context())
		defer kill()
		w.setAt(func(e string) error {
			if e != effect {
				return nil
			}
			kill()
			w.setAt(func(string) error { return context.Canceled })
			return context.Canceled
		})
		if err := w.deliver(ctx, work("r1"), nth); err == nil {
			t.Fatalf("the worker did not die at %s", effect)
		}
		w.setAt(func(string) error { return nil })
	}
	dieAt("arm", 1) // refreshed and told
	if _, ok := w.outcome("r1"); !ok {
		t.Fatalf("r1 is not told: %v", w.told())
	}
	w.forgetful = true
	w.advance(3 * time.Minute) // its time to be looked at again is over: worth a write
	dieAt("saved", 2)
	if g := mustStored(w); g.Pending == nil || g.Cause.ID != "r1" {
		t.Fatalf("the outcome was not decided anew: %+v", g)
	}
	w.settle(work("r2"), 1)
	ids := map[string]int{}
	for _, e := range w.outcomes {
		ids[e.ID]++
	}
	for id, n := range ids {
		if n > 1 {
			t.Errorf("outcome %s is there %d times", id, n)
		}
	}
	if _, ok := w.outcome("r2"); !ok {
		t.Errorf("r2 has no outcome, told %v", w.told())
	}
}

// The reconciler knows of a sign-out that was never told: its repair tells, and then the grant
// rests.
func TestARepairTellsOfASignOut(t *testing.T) {
	w := newWorld(t)
	token := w.login("a", 10*time.Second)
	w.families[token].dead = true
	w.settle(work("r1"), 1)
	w.fire()
	w.away("publish")
	a := w.timers[key]
	w.advance(a.at.Sub(w.now()))
	if err := w.deliver(t.Context(), a.work, 1); err == nil {
		t.Fatal("published nothing, and said nothing")
	}
	w.setAt(func(string) error { return nil })
	g := mustStored(w)
	if g.Status != grant.ReauthRequired || g.Due().At.IsZero() {
		t.Fatalf("%s, due %v: the reconciler would pass it over", g.Status, g.Due().At)
	}
	w.settle(grant.Work{Cause: schema.Cause{ID: "repair-1", Type: schema.CauseRepair}}, 1)
	if w.last(schema.UserReauthRequired); !new(mustStored(w)).Due().At.IsZero() {
		t.Error("a grant that has nothing more to say is still due")
	}
}

// Bursts: the second request replaces the first one's message, and takes its timer away before the
// first one sets its own.
func TestAPublishedOutcomeIsNotPublishedAgainByLaterCommands(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r1"), 1) // the first profile: stored with its outcome
	w.forgetful = true
	w.advance(5 * time.Minute / 4)
	for n := range 4 {
		// None of them changes anything, none knows of a timer.
		w.settle(work(fmt.Sprint("burst", n)), 1)
	}
	if n := w.told()[schema.UserSynced]; n != 5 {
		t.Errorf("%d outcomes of 5 commands: %v", n, w.outcomes)
	}
}

// A message that comes again after the server has restarted counts its deliveries from one again.
func TestAnOldMessageIsNotAnsweredTwice(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1)
	w.settle(work("r1"), 1)
	w.forgetful = true
	w.advance(3 * time.Minute)
	current.Store(w, work("r1"))
	m := &runner.Message{Subject: "renewal.due.propelauth.u17", Deliveries: 1, Time: start}
	if err := w.consumer().Handle(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	same := func(e schema.Event) bool { return e.ID == grant.OutcomeID(key, work("r1").Cause) }
	n := len(slices.DeleteFunc(slices.Clone(w.outcomes), func(e schema.Event) bool {
		return !same(e)
	}))
	if n != 1 {
		t.Errorf("r1 was answered %d times", n)
	}
}

// Work was answered and then put off, because its worker died before the timer and its provider was
// left alone when the work came again. It is in a new message then, and is not answered a second
// time, minutes later.
func TestWorkThatWasPutOffIsNotAnsweredTwice(t *testing.T) {
	w := newWorld(t)
	q := &holdAll{quietGuard{w: w}}
	w.guard = q
	w.login("a", 900*time.Second)
	w.settle(work("r0"), 1)
	w.away("arm")
	if err := w.deliver(t.Context(), work("r1"), 1); err == nil {
		t.Fatal("the timer was armed")
	}
	w.setAt(func(string) error { return nil })
	q.until = w.now().Add(5 * time.Minute)
	w.settle(work("r1"), 2)
	put := w.timers[key]
	w.forgetful = true
	q.until = w.now()
	w.settle(work("r3"), 1) // another one is answered meanwhile
	w.timers[key] = put
	w.fire()
	if n := w.told()[schema.UserSynced]; n != 3 {
		t.Errorf("%d outcomes of 3 commands: %v", n, w.told())
	}
	// No caller waits for the name of a timer, and others may be answered before the timer comes
	// again.
	timer := w.timers[key]
	w.advance(timer.at.Sub(w.now()) - 10*time.Minute) // it is the profile's
	delete(w.timers, key)
	w.away("arm")
	if err := w.deliver(t.Context(), timer.work, 1); err == nil {
		t.Fatal("the timer was armed")
	}
	w.setAt(func(string) error { return nil })
	q.until = w.now().Add(5 * time.Minute)
	w.settle(timer.work, 2)
	put = w.timers[key]
	q.until = w.now()
	w.settle(work("r2"), 1)
	w.timers[key] = put
	w.fire()
	ids := map[string]bool{}
	for _, e := range w.outcomes {
		if ids[e.ID] {
			t.Errorf("%s is there twice", e.ID)
		}
		ids[e.ID] = true
	}
}

// A profile that was asked for before the user was erased is not published after it, though nothing
// of it is written.
func TestNothingIsPublishedOfAnErasedUser(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r1"), 1)
	w.outcomes = nil
	delete(w.timers, key)
	w.setAt(func(effect string) error {
		if effect == "userinfo" {
			w.setAt(func(string) error { return nil })
			w.advance(3 * time.Second)
			w.erase()
		}
		return nil
	})
	w.settle(work("r2"), 1)
	if e, _ := w.outcome("r2"); e.Type != schema.UserRefreshFailed || len(w.outcomes) != 1 {
		t.Errorf("told %v", w.outcomes)
	}
	if _, armed := w.timers[key]; armed {
		t.Error("a timer is armed for somebody who is gone")
	}
}

// A user who is erased while an earlier outcome is looked for: the work goes on with a record that
// is gone, in the same delivery.
func TestAnErasureBeforeAnEarlierOutcomeIsTold(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.away("publish")
	_ = w.deliver(context.Background(), work("r1"), 1)
	w.setAt(func(string) error { return nil })
	w.onLook = func() {
		w.onLook = nil
		w.advance(3 * time.Second)
		w.erase()
	}
	if err := w.deliver(context.Background(), work("r2"), 1); err != nil {
		t.Error(err)
	}
	if e, _ := w.outcome("r2"); e.Type != schema.UserRefreshFailed || len(w.outcomes) != 1 {
		t.Errorf("told %v", w.outcomes)
	}
}

// A timer that fires while its user is being erased has nothing to say.
func TestATimerOfAnErasedUserSaysNothing(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.settle(work("r1"), 1)
	w.outcomes = nil
	g := mustStored(w)
	w.save(g.Erased(key, grant.Position{Stream: start, Sequence: 1 << 20},
		grant.Turn{Nonce: "forget", Now: w.now()}))
	w.fire()
	if len(w.outcomes) != 0 || w.reuse != 0 {
		t.Errorf("told %v", w.outcomes)
	}
	w.settle(work("r2"), 1)
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonUnknownGrant {
		t.Errorf("a request is answered %+v", d)
	}
}

// A request that overtakes its login in another stream waits for it.
func TestARequestWaitsForALoginOnItsWay(t *testing.T) {
	w := newWorld(t)
	w.loginWaits = true
	if err := w.deliver(t.Context(), work("r1"), 1); err == nil || len(w.outcomes) != 0 {
		t.Fatalf("%v, told %v", err, w.outcomes)
	}
	w.loginWaits = false
	w.login("a", 90*time.Second)
	w.settle(work("r1"), 2)
	if e, _ := w.outcome("r1"); e.Type != schema.UserSynced {
		t.Errorf("told %s", e.Type)
	}
}

// No user is told anything that a login on its way would make untrue.
func TestBadNewsWaitsForALoginOnItsWay(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(w *world)
		want  schema.Type
	}{
		"no refresh token": {func(w *world) {
			w.loseRefreshToken()
			w.advance(11 * time.Second)
		}, schema.UserReauthRequired},
		"superseded": {
			func(w *world) { w.published = grant.Mark{Version: 1 << 50, Token: "later"} },
			schema.UserRefreshFailed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 10*time.Second)
			c.spoil(w)
			w.loginWaits = true
			if err := w.deliver(t.Context(), work("r1"), 1); err == nil || len(w.outcomes) != 0 {
				t.Fatalf("%v, told %v", err, w.told())
			}
			w.loginWaits = false
			w.settle(work("r1"), 2)
			w.last(c.want)
		})
	}
}

// A request has the mark of the timer that it replaced. Where nothing has changed, that mark is as
// new as the record that the request's own outcome is made from.
func TestARequestWithTheTimersMarkIsAnswered(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1)
	asked := work("r1")
	asked.Mark = w.timers[key].work.Mark
	w.settle(asked, 1)
	if _, ok := w.outcome("r1"); !ok {
		t.Errorf("told %v", w.told())
	}
}

// Two sources may call two commands the same.
func TestTwoSourcesWithOneIDAreBothAnswered(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	crm, billing := work("42"), work("42")
	crm.Cause.Source, billing.Cause.Source = "/crm", "/billing"
	w.settle(crm, 1)
	w.settle(billing, 1)
	for _, asked := range []grant.Work{crm, billing} {
		if _, ok := w.outcomeOf(asked.Cause); !ok {
			t.Errorf("%s has no outcome", asked.Cause.Source)
		}
	}
}

// A due time that has passed is not armed again as it is: the timer would fire at once, and again.
func TestADueTimeInThePastDoesNotSpin(t *testing.T) {
	w := newWorld(t)
	w.login("a", 60*time.Second)
	w.settle(work("r1"), 1)
	g := mustStored(w)
	g.NextDueAt = w.now().Add(-time.Minute) // as after a margin was lowered
	w.save(g)
	calls := 0
	w.setAt(func(effect string) error {
		if effect == "userinfo" {
			calls++
		}
		return nil
	})
	w.settle(g.NextTimer(g.NextDueAt), 1)
	if a := w.timers[key]; a.at.Sub(w.now()) < policy.Floor || calls != 1 {
		t.Errorf("%d calls, and the next timer is %v away", calls, a.at.Sub(w.now()))
	}
}

// A record that cannot be read, or that the store refuses, holds no place: the work is put off, and
// the sender of the command is told once.
func TestWorkThatFailsForItsOwnReasonIsPutOff(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.setAt(func(effect string) error {
		if effect == "load" || effect == "claim" {
			return fmt.Errorf("load: %w", grant.ErrUnreadable)
		}
		return nil
	})
	asked := work("r1")
	last := time.Duration(0)
	for n := range 8 {
		if err := w.deliver(t.Context(), asked, 1); err != nil {
			t.Fatalf("it holds a place: %v", err)
		}
		a := w.timers[key]
		if wait := a.at.Sub(w.now()); wait <= last {
			t.Errorf("put off for %v after %v", wait, last)
		} else {
			last = wait
		}
		if asked = a.work; asked.Deferrals != n+1 {
			t.Errorf("put off %d times, counted %d", n+1, asked.Deferrals)
		}
	}
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if len(w.outcomes) != 1 || d.Reason != schema.ReasonUnreadable || d.Cause.ID != "r1" {
		t.Errorf("told %v", w.outcomes)
	}
	w.setAt(func(string) error { return nil })
	w.fire() // the key is back
	if w.told()[schema.UserSynced] != 1 {
		t.Errorf("told %v", w.told())
	}
}

// A failure that is not the grant's own puts the work off too, shortly and without an outcome: the
// command is answered when it is done.
func TestWorkThatMeetsAnOutageIsPutOffWithoutAnOutcome(t *testing.T) {
	w := newWorld(t)
	current.Store(w, work("r1"))
	if err := w.consumer().PutOff(t.Context(), message(5), errAway); err != nil {
		t.Fatal(err)
	}
	a := w.timers[key]
	if len(w.outcomes) != 0 || a.work.Cause != work("r1").Cause ||
		a.at.Sub(w.now()) > 30*time.Second {
		t.Errorf("told %v, armed %+v", w.outcomes, a)
	}
}

// A refusal that cannot be weighed is written down: the token is not presented again as if the
// answer had been lost.
func TestARefusalThatCannotBeWeighedIsHeld(t *testing.T) {
	w := newWorld(t)
	token := w.login("a", 10*time.Second)
	w.families[token].dead = true
	w.guard = &quietGuard{w: w, hold: errAway}
	w.settle(work("r1"), 1)
	w.fire()
	w.fire()
	g := mustStored(w)
	if g.Status != grant.Live || g.Claim != nil || g.Doubt != nil ||
		w.told()[schema.UserReauthRequired] != 0 {
		t.Errorf("%s, claim %v, told %v", g.Status, g.Claim, w.told())
	}
}

// A timer from before the record was changed, fired again when nothing is due, publishes nothing.
// Above all it publishes nothing under the name of the timer that waits, whose outcome would then
// be dropped.
func TestATimerThatFiresAgainTakesNoOthersName(t *testing.T) {
	// Then tokens would be renewed if asked for.
	for _, after := range []time.Duration{10 * time.Second, 70 * time.Second} {
		w := newWorld(t)
		w.login("a", 90*time.Second)
		w.settle(work("r0"), 1)
		timer := w.timers[key]
		tokens := work("r1")
		tokens.Want = schema.WantTokens
		w.advance(10 * time.Second)
		w.settle(tokens, 1)
		told, waits := len(w.outcomes), w.timers[key]
		w.advance(after)
		w.settle(timer.work, 1)
		if len(w.outcomes) != told || w.timers[key].work.Cause != waits.work.Cause {
			t.Errorf("told %v, and %+v waits", w.told(), w.timers[key].work.Cause)
		}
		w.fire()
		d := data[schema.Synced](t, w.last(schema.UserSynced))
		if len(w.outcomes) != told+1 || !d.Refreshed || d.Version != mustStored(w).Version {
			t.Errorf("the renewal is not told: %+v", d)
		}
	}
}

// Servers that were killed fire a timer again, with its earlier work. What is due by now is done
// under its own cause.
func TestATimerThatFiresAgainIsAnsweredOnce(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("r0"), 1)
	g, _ := w.stored()
	timer := g.NextTimer(g.NextDueAt)
	w.advance(90 * time.Second)
	w.settle(timer, 1)
	w.advance(90 * time.Second)
	w.fire()
	refreshed := w.refreshed
	w.advance(90 * time.Second)
	w.settle(timer, 1)
	answers := 0
	for _, e := range w.outcomes {
		if e.ID == grant.OutcomeID(key, timer.Cause) {
			answers++
		}
	}
	if answers != 1 || len(w.outcomes) != 4 || w.refreshed != refreshed+1 {
		t.Errorf("the timer was answered %d times; %d outcomes, %d refreshes",
			answers, len(w.outcomes), w.refreshed)
	}
}

// A renewal whose profile failed is published. In the record it leaves that the pair was saved, and
// no outcome. Its timer, fired again minutes later by servers that were killed, publishes no second
// outcome, whatever was told in between.
func TestARenewalWithoutAProfileIsToldOnce(t *testing.T) {
	for _, between := range []int{0, 1} {
		w := newWorld(t)
		w.login("a", 90*time.Second)
		w.settle(work("r0"), 1)
		timer := w.timers[key].work
		w.userinfo = &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502}
		w.fire()
		first := w.last(schema.UserSynced).ID
		w.forgetful = true
		w.advance(3 * time.Minute)
		for n := range between {
			w.userinfo = nil
			w.settle(work(fmt.Sprint("asked", n)), 1)
		}
		w.settle(timer, 1)
		n := 0
		for _, e := range w.outcomes {
			if e.ID == first {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d commands in between: told %d times", between, n)
		}
	}
}

// fromSender is the work of a request that names its sender.
func fromSender(id, sender string) grant.Work {
	w := work(id)
	w.Cause.Sender = sender
	return w
}

// A version before has answered a command under an id without its sender. A worker that starts
// later does not answer the command again, even where the server counts its deliveries from one
// again. The same id from another sender is another command.
func TestACommandInFlightOverAnUpdateIsAnsweredOnce(t *testing.T) {
	w := newWorld(t)
	w.login("a", 900*time.Second)
	w.settle(fromSender("r1", "shop"), 1)
	unnamed := work("r1").Cause
	for i, e := range w.outcomes {
		if e.ID == grant.OutcomeID(key, fromSender("r1", "shop").Cause) {
			w.outcomes[i].ID = grant.OutcomeID(key, unnamed) // as a version before stored it
		}
	}
	w.forgetful = true
	for _, deliveries := range []uint64{1, 2} {
		current.Store(w, fromSender("r1", "shop"))
		m := &runner.Message{
			Subject:    "renewal.due.propelauth.u17",
			Deliveries: deliveries,
			Time:       w.now(),
		}
		if err := w.consumer().Handle(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	w.settle(fromSender("r1", "crm"), 2)
	bySender := map[string]int{}
	for _, e := range w.outcomes {
		d, err := schema.Data[schema.Synced](e)
		if err != nil {
			t.Fatal(err)
		}
		if d.Cause.ID == "r1" {
			bySender[d.Cause.Sender]++
		}
	}
	if bySender["shop"] != 1 || bySender["crm"] != 1 {
		t.Errorf("outcomes by sender: %v, want one each", bySender)
	}
}
