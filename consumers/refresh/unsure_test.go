package refresh_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// oddly is a refusal in words that no table has: Dex's for a session that ended, for instance.
func oddly(code string) *grant.Fault {
	return &grant.Fault{Class: grant.Unknown, Op: "refresh", Status: 400, Code: code}
}

// refusedUntil lets the grant's timer fire as long as the provider refuses it in these words, and
// returns when it was told; zero if that never happens in a day.
func (w *world) refusedUntil(f *grant.Fault) (told time.Duration) {
	began := w.now()
	w.refuse = f
	w.settle(work("r1"), 1)
	for w.now().Sub(began) < 24*time.Hour {
		if w.told()[schema.UserReauthRequired] > 0 {
			return w.now().Sub(began)
		}
		w.fire()
	}
	return 0
}

// A user whom the provider refuses in unknown words, for hours, and alone, has left.
func TestWhoIsRefusedAloneInUnknownWordsIsToldInTheEnd(t *testing.T) {
	for name, c := range map[string]struct{ code, want string }{
		"a code": {"invalid_request", "invalid_request"}, "no body": {"", "status 400"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.guard = &quietGuard{w: w}
			w.login("a", 10*time.Second)
			told := w.refusedUntil(oddly(c.code))
			if told < 2*policy.RetryLater-time.Second || told > 3*policy.RetryLater {
				t.Errorf("told after %v, want some time after two waits of %v",
					told, policy.RetryLater)
			}
			d := data[schema.ReauthRequired](t, w.last(schema.UserReauthRequired))
			if d.Reason != schema.ReasonRefusedAlone || d.ProviderError != c.want {
				t.Errorf("told %+v", d)
			}
			// The command that met it had its answer long before.
			e, ok := w.outcome("r1")
			if !ok || data[schema.RefreshFailed](t, e).Reason != schema.ReasonProviderUnknown {
				t.Errorf("the command was answered %s", e.Type)
			}
			if w.told()[schema.UserRefreshFailed] > 3 {
				t.Errorf("%d user.refresh_failed", w.told()[schema.UserRefreshFailed])
			}
		})
	}
}

// The same words to everybody, and no guard to ask, tell nothing of the user.
func TestUnknownWordsAloneSignNobodyOut(t *testing.T) {
	for name, set := range map[string]func(*world){
		"no guard": func(*world) {},
		"no user is renewed": func(w *world) {
			w.guard = &quietGuard{w: w, held: schema.ReasonNobodyRenewed}
		},
		"most are refused": func(w *world) {
			w.guard = &quietGuard{w: w, held: schema.ReasonMassFailure}
		},
		"the settings were changed": func(w *world) {
			w.guard = &quietGuard{w: w, held: schema.ReasonUnproven}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			set(w)
			w.login("a", 10*time.Second)
			if told := w.refusedUntil(oddly("")); told != 0 {
				t.Errorf("told after %v", told)
			}
			w.refuse = nil
			w.fire()
			d := data[schema.Synced](t, w.last(schema.UserSynced))
			if !d.Refreshed || !d.Recovered {
				t.Errorf("back again: %+v", d)
			}
		})
	}
}

// A refusal in unknown words does not confirm a refusal in known words, nor the other way round:
// each kind is confirmed by itself.
func TestPlainAndUnknownWordsAreConfirmedApart(t *testing.T) {
	w := newWorld(t)
	w.guard = &quietGuard{w: w}
	token := w.login("a", 10*time.Second)
	w.refuse = oddly("")
	w.settle(work("r1"), 1)
	w.refuse = nil
	w.families[token].dead = true
	for range 2 {
		w.fire()
		if n := w.told()[schema.UserReauthRequired]; n != 0 {
			t.Fatal("told before it was refused three times in plain words")
		}
	}
	w.fire()
	d := data[schema.ReauthRequired](t, w.last(schema.UserReauthRequired))
	if d.Reason != schema.ReasonRevoked {
		t.Errorf("told %+v", d)
	}
}

// Unknown words about an unproven login sign no user out: what is proven stays.
func TestUnknownWordsAboutALoginSayNothingOfTheProvenPair(t *testing.T) {
	w := newWorld(t)
	w.guard = &quietGuard{w: w}
	w.login("a", 100*time.Hour)
	w.settle(work("r0"), 1)
	w.candidate("b", time.Second)
	w.advance(2 * time.Second)
	w.refuse = oddly("")
	w.settle(work("login-b"), 1)
	for range 20 {
		w.fire()
	}
	if g := mustStored(w); g.Status != grant.Live || w.told()[schema.UserReauthRequired] != 0 {
		t.Errorf("%s, told %v", g.Status, w.told())
	}
}

// A provider that fails for one user alone, for longer than a day, says nothing that could sign the
// user out. But an operator should look.
func TestWhoFailsAloneForADayIsTold(t *testing.T) {
	w := newWorld(t)
	q := &quietGuard{w: w}
	w.guard = q
	w.login("a", 10*time.Second)
	w.settle(work("r0"), 1)
	began := w.now()
	w.refuse = &grant.Fault{
		Class:  grant.Ambiguous,
		Op:     "refresh",
		Status: 500,
		Code:   "invalid_request",
	}
	for w.now().Sub(began) < 23*time.Hour {
		w.fire()
	}
	before := w.told()[schema.UserRefreshFailed]
	for fails := w.refuse; w.now().Sub(began) < 72*time.Hour; {
		// For hours no other user is renewed either, or the user is throttled.
		hour := int(w.now().Sub(began) / time.Hour)
		if q.alone, w.refuse = hour%7 == 3, fails; hour%7 == 5 {
			w.refuse = &grant.Fault{
				Class:      grant.Throttled,
				Op:         "refresh",
				Status:     429,
				RetryAfter: time.Minute,
			}
		}
		w.fire()
	}
	w.refuse, q.alone = &grant.Fault{Class: grant.Ambiguous, Op: "refresh", Status: 500}, false
	w.advance(2 * time.Minute)
	w.fire()
	if n := w.told()[schema.UserRefreshFailed] - before; n != 1 {
		t.Fatalf("told %d times", n)
	}
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonFailingAlone || d.NextAttemptAt == nil {
		t.Errorf("told %+v", d)
	}
	if g := mustStored(w); g.Status != grant.Live || g.LastError != schema.ReasonFailingAlone {
		t.Errorf("the grant is %s, %s", g.Status, g.LastError)
	}
	w.refuse = nil
	w.fire()
	if d := data[schema.Synced](t, w.last(schema.UserSynced)); !d.Refreshed || !d.Recovered {
		t.Errorf("back again: %+v", d)
	}
}

// If no other user is renewed either, it is an outage like any other.
func TestAnOutageOfADayIsNobodysOwn(t *testing.T) {
	w := newWorld(t)
	w.guard = &quietGuard{w: w, alone: true}
	w.login("a", 10*time.Second)
	w.settle(work("r0"), 1)
	w.refuse = &grant.Fault{Class: grant.Ambiguous, Op: "refresh", Status: 500}
	for began := w.now(); w.now().Sub(began) < 30*time.Hour; {
		w.fire()
	}
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonProviderUnavailable {
		t.Errorf("told %+v", d)
	}
}
