package systemtest_test

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/schema"
)

// said waits for a number of events about the provider, and returns them.
func (w *world) said(n int) []schema.Event {
	w.t.Helper()
	var events []schema.Event
	w.await("the provider's state is told", 30*time.Second, func(all map[string][]schema.Event) bool {
		events = all[""]
		return len(events) >= n
	})
	return events
}

// told checks the events about the provider so far: a type and a reason each.
func (w *world) told(want ...string) []schema.Event {
	w.t.Helper()
	events := w.said(len(want) / 2)
	for i, e := range events {
		if d := decode[schema.ProviderState](w.t, e); 2*i >= len(want) || string(e.Type) != want[2*i] || d.Reason != want[2*i+1] || d.Since.IsZero() {
			w.t.Errorf("event %d about the provider: %s %s", i, e.Type, e.Data)
		}
	}
	return events
}

// ledger is the provider's own list of the calls it got.
type ledger struct {
	mu    sync.Mutex
	calls []time.Time
}

func (l *ledger) note() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls = append(l.calls, time.Now())
}

// between counts the calls in a time.
func (l *ledger) between(from, to time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, at := range l.calls {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return n
}

// manned is a world with two workers, and users who are signed in and were renewed once. The
// provider answers as fault says.
func manned(t *testing.T, users int, o options) (w *world, fault *atomic.Pointer[idptest.Fault], calls *ledger) {
	t.Helper()
	w, fault, calls = newWorld(t, o), &atomic.Pointer[idptest.Fault]{}, &ledger{}
	w.provider.SetFault(func(idptest.Request) *idptest.Fault { calls.note(); return fault.Load() })
	w.follow()
	w.start(16)
	w.start(16)
	p := w.publisher()
	for n := range users {
		w.login(p, user(n))
	}
	w.renewed(users, 1)
	return w, fault, calls
}

// 503 opens the breaker for both workers; its end is noticed, told, and everybody goes on.
func TestAnOutageIsToldAndEnds(t *testing.T) {
	t.Parallel()
	const users = 40
	w, fault, _ := manned(t, users, options{provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: quick})
	fault.Store(&idptest.Fault{Status: 503, Body: "down for maintenance"})
	w.told("provider.degraded", guard.ReasonThrottled)
	fault.Store(nil)
	w.renewed(users, 2)
	w.told("provider.degraded", guard.ReasonThrottled, "provider.recovered", guard.ReasonThrottled)
	w.nobodySignedOut(users)
}

// A Retry-After holds both workers: between the time that it was told and its end the provider is
// left alone.
func TestRetryAfterHoldsBothWorkers(t *testing.T) {
	t.Parallel()
	const users, wait = 40, 8 * time.Second
	w, fault, calls := manned(t, users, options{provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: quick})
	fault.Store(&idptest.Fault{Status: 429, Header: http.Header{"Retry-After": {"8"}}})
	degraded := w.told("provider.degraded", guard.ReasonThrottled)[0]
	fault.Store(nil) // it would answer, if it were asked
	told := w.told("provider.degraded", guard.ReasonThrottled, "provider.recovered", guard.ReasonThrottled)
	// The other worker hears of it with its next look at the record, a second later at the latest.
	from, to := degraded.Time.Add(2*time.Second), degraded.Time.Add(wait-time.Second)
	if n := calls.between(from, to); n != 0 {
		t.Errorf("%d calls in %v of a wait of %v", n, to.Sub(from), wait)
	}
	if told[1].Time.Before(to) {
		t.Errorf("recovered %v after it was told", told[1].Time.Sub(degraded.Time))
	}
	w.renewed(users, 1)
	w.nobodySignedOut(users)
}

// A client secret that is wrong from one moment on: told once, nobody signed out, and the right one
// heals it. Who signs in meanwhile has a profile at once: the provider knows their access token.
func TestAWrongSecretIsTold(t *testing.T) {
	t.Parallel()
	const users = 30
	w, _, _ := manned(t, users, options{provider: idptest.Options{Lifetime: 4 * time.Second, ClientSecret: "right"}, concurrency: 32, policy: quick})
	w.stop()
	w.secret = "wrong"
	w.start(16)
	w.start(16)
	w.told("provider.degraded", guard.ReasonConfig)
	w.login(w.publisher(), "newcomer")
	w.await("who signs in is synced", 10*time.Second, func(all map[string][]schema.Event) bool { return len(all["newcomer"]) > 0 })
	w.stop()
	w.secret = "right"
	w.start(16)
	w.start(16)
	w.renewed(users, 2)
	w.told("provider.degraded", guard.ReasonConfig, "provider.recovered", guard.ReasonConfig)
	w.nobodySignedOut(users)
}

// 60 % of the users are refused. The others are renewed all the while, in their time, and nobody is
// signed out as long as verdicts are held; when they have been held for long enough, the dead are
// told, and they alone.
func TestMostUsersRefusedTheRestGoesOn(t *testing.T) {
	t.Parallel()
	const users, dead = 50, 30
	w, _, _ := manned(t, users, options{
		provider: idptest.Options{Lifetime: 4 * time.Second}, concurrency: 32, policy: quick,
		rules: guard.Rules{DeadMin: 5, DeadShare: 0.2, Hold: 15 * time.Second, Alone: time.Second},
	})
	began := time.Now()
	for n := range dead {
		w.provider.EndSessions(user(n))
	}
	w.said(1)
	before := make([]int, users)
	for n := dead; n < users; n++ {
		before[n] = w.provider.Renewals(user(n))
	}
	w.await("those who left are told", time.Minute, func(all map[string][]schema.Event) bool {
		for n := range dead {
			if list := all[user(n)]; len(list) == 0 || list[len(list)-1].Type != schema.UserReauthRequired {
				return false
			}
		}
		return true
	})
	for n := dead; n < users; n++ {
		// Tokens of 4 s for 10 s and more.
		if got := w.provider.Renewals(user(n)) - before[n]; got < 2 || !w.provider.Live(user(n)) {
			t.Errorf("%s was renewed %d times meanwhile", user(n), got)
		}
	}
	for name, list := range w.heard() {
		for _, e := range list {
			if e.Type == schema.UserReauthRequired && (name >= user(dead) || e.Time.Before(began.Add(w.rules.Hold))) {
				t.Errorf("%s was signed out %v after sessions ended", name, e.Time.Sub(began))
			}
		}
	}
	if e := w.heard()[""][0]; e.Type != schema.ProviderDegraded || decode[schema.ProviderState](t, e).Reason != guard.ReasonMassFailure {
		t.Errorf("told %s %s", e.Type, e.Data)
	}
}

// The rate counts each call, userinfo too, over both workers together.
func TestTheRateCountsEveryCallOfAllWorkers(t *testing.T) {
	t.Parallel()
	const users, rate = 60, 20
	w, calls := newWorld(t, options{concurrency: 32, policy: quick, rate: rate}), &ledger{}
	w.provider.SetFault(func(idptest.Request) *idptest.Fault { calls.note(); return nil })
	w.follow()
	w.start(16)
	w.start(16)
	p := w.publisher()
	synced := func(times int) { // each login is one call, each request two
		w.await("everybody is synced", time.Minute, func(all map[string][]schema.Event) bool {
			for n := range users {
				if len(all[user(n)]) < times {
					return false
				}
			}
			return true
		})
	}
	for n := range users {
		w.login(p, user(n))
	}
	synced(1)
	for n := range users {
		_, err := p.RefreshDue(t.Context(), provider, user(n), schema.RefreshDue{Want: schema.WantTokens})
		w.must(err)
	}
	synced(2)
	if stats := w.provider.Stats(); stats.UserInfos < 2*users || stats.Refreshes < users {
		t.Errorf("too few calls to tell: %+v", stats)
	}
	calls.mu.Lock()
	first := slices.Clone(calls.calls)
	calls.mu.Unlock()
	for _, at := range first {
		// A permit is used at its time or a moment later. So in two seconds there are those of two
		// seconds, and of the moment before.
		if n := calls.between(at, at.Add(2*time.Second)); n > 3*rate {
			t.Fatalf("%d calls within two seconds, at a rate of %d", n, rate)
		}
	}
}
