package systemtest_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// said waits for a number of events about the provider, and returns them.
func (w *world) said(n int) []schema.Event {
	w.t.Helper()
	var events []schema.Event
	w.await("the provider's state is told", 30*time.Second,
		func(all map[string][]schema.Event) bool {
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
		if d := decode[schema.ProviderState](w.t, e); 2*i >= len(want) ||
			string(e.Type) != want[2*i] || d.Reason != want[2*i+1] || d.Since.IsZero() {
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

// manned is a world with two workers, and with users who are signed in and were renewed once. The
// provider answers as fault says.
func manned(
	t *testing.T, users int, o options,
) (w *world, fault *atomic.Pointer[standin.Fault], calls *ledger) {
	t.Helper()
	w, fault, calls = newWorld(t, o), &atomic.Pointer[standin.Fault]{}, &ledger{}
	w.provider.SetFault(func(standin.Request) *standin.Fault { calls.note(); return fault.Load() })
	w.follow()
	w.start()
	w.start()
	p := w.publisher()
	for n := range users {
		w.login(p, user(n))
	}
	w.renewed(users, 1)
	return w, fault, calls
}

// A 503 opens the breaker for both workers. Its end is noticed and told, and all users are renewed
// again.
func TestAnOutageIsToldAndEnds(t *testing.T) {
	t.Parallel()
	const users = 40
	w, fault, _ := manned(t, users, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		settings:    quick,
	})
	fault.Store(&standin.Fault{Status: 503, Body: "down for maintenance"})
	w.told("provider.degraded", health.ReasonThrottled)
	fault.Store(nil)
	w.renewed(users, 2)
	w.told("provider.degraded", health.ReasonThrottled, "provider.recovered",
		health.ReasonThrottled)
	w.nobodySignedOut(users)
}

// A Retry-After holds both workers. From the moment when it was told until its end, the provider is
// left alone.
func TestRetryAfterHoldsBothWorkers(t *testing.T) {
	t.Parallel()
	const users, wait = 40, 8 * time.Second
	w, fault, calls := manned(t, users, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		settings:    quick,
	})
	fault.Store(&standin.Fault{Status: 429, Header: http.Header{"Retry-After": {"8"}}})
	degraded := w.told("provider.degraded", health.ReasonThrottled)[0]
	fault.Store(nil) // it would answer, if it were asked
	told := w.told("provider.degraded", health.ReasonThrottled, "provider.recovered",
		health.ReasonThrottled)
	// The other worker hears of it when it next looks at the record, a second later at the latest.
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

// A client secret that is wrong from one moment on is told once, signs no user out, and is healed
// by the right secret. A user who signs in meanwhile has a profile at once, since the provider
// knows the access token.
func TestAWrongSecretIsTold(t *testing.T) {
	t.Parallel()
	const users = 30
	w, _, _ := manned(t, users, options{
		provider:    standin.Options{Lifetime: 4 * time.Second, ClientSecret: "right"},
		concurrency: 32,
		settings:    quick,
	})
	w.stop()
	w.environ = append(w.environ, "RENEWD_CLIENT_SECRET=wrong")
	w.start()
	w.start()
	w.told("provider.degraded", health.ReasonConfig)
	w.newcomer()
	w.stop()
	w.environ = append(w.environ, "RENEWD_CLIENT_SECRET=right")
	w.start()
	w.start()
	w.renewed(users, 2)
	w.told("provider.degraded", health.ReasonConfig, "provider.recovered", health.ReasonConfig)
	w.nobodySignedOut(users)
}

// 60 % of the users are refused. The others are renewed meanwhile, in time, and no user is signed
// out while verdicts are held. When the verdicts were held for long enough, the users whose
// sessions ended are told, and no others.
func TestMostUsersRefusedTheRestGoesOn(t *testing.T) {
	t.Parallel()
	const users, dead, hold = 50, 30, 15 * time.Second
	w, _, _ := manned(t, users, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		settings: append(slices.Clone(quick),
			"RENEWD_GUARD_DEAD_MIN=5",
			"RENEWD_GUARD_DEAD_SHARE=0.2",
			"RENEWD_GUARD_HOLD="+hold.String(),
			"RENEWD_GUARD_ALONE=1s",
		),
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
			if list := all[user(n)]; len(list) == 0 ||
				list[len(list)-1].Type != schema.UserReauthRequired {
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
			if e.Type == schema.UserReauthRequired &&
				(name >= user(dead) || e.Time.Before(began.Add(hold))) {
				t.Errorf("%s was signed out %v after sessions ended", name, e.Time.Sub(began))
			}
		}
	}
	if e := w.heard()[""][0]; e.Type != schema.ProviderDegraded ||
		decode[schema.ProviderState](t, e).Reason != health.ReasonMassFailure {
		t.Errorf("told %s %s", e.Type, e.Data)
	}
}

// The rate counts each call, including userinfo, over both workers together.
func TestTheRateCountsEveryCallOfAllWorkers(t *testing.T) {
	t.Parallel()
	const users, rate = 60, 20
	limited := append(slices.Clone(quick), fmt.Sprint("RENEWD_PROVIDER_RATE=", rate))
	w, calls := newWorld(t, options{concurrency: 32, settings: limited}), &ledger{}
	w.provider.SetFault(func(standin.Request) *standin.Fault { calls.note(); return nil })
	w.follow()
	w.start()
	w.start()
	p := w.publisher()
	synced := func(times int) { // each login makes one call, each request two
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
		_, err := p.RefreshDue(t.Context(), provider, user(n), schema.RefreshDue{
			Want: schema.WantTokens,
		})
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
		// A permit is used at its time or a moment later. So two seconds have the permits of two
		// seconds, and those of the moment before.
		if n := calls.between(at, at.Add(2*time.Second)); n > 3*rate {
			t.Fatalf("%d calls within two seconds, at a rate of %d", n, rate)
		}
	}
}
