package systemtest_test

import (
	"errors"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// quick are settings of a policy that waits no longer than a test can.
var quick = []string{
	"RENEWD_POLICY_FLOOR=1s",
	"RENEWD_POLICY_CONFIRM_MIN=1s",
	"RENEWD_POLICY_CONFIRM_MAX=1s",
	"RENEWD_POLICY_RETRY_MIN=1s",
	"RENEWD_POLICY_RETRY_MAX=2s",
}

// renewed waits until each of n users has been renewed so many times more.
func (w *world) renewed(n, more int) {
	w.t.Helper()
	want := make([]int, n)
	for i := range want {
		want[i] = w.provider.Renewals(user(i)) + more
	}
	w.await("everybody is renewed again", 2*time.Minute, func(map[string][]schema.Event) bool {
		for i := range want {
			if w.provider.Renewals(user(i)) < want[i] {
				return false
			}
		}
		return true
	})
}

// nobodySignedOut checks the promise at the end: no user was told to sign in, and every stored
// token is good.
func (w *world) nobodySignedOut(n int) {
	w.t.Helper()
	for name, list := range w.heard() {
		for _, e := range list {
			if e.Type == schema.UserReauthRequired {
				w.t.Errorf("%s was signed out: %s", name, e.Data)
			}
		}
	}
	for i := range n {
		if !w.provider.Live(user(i)) {
			w.t.Errorf("%s has lost its session at the provider", user(i))
		}
	}
	if s := w.provider.Stats(); s.Reuse != 0 || s.RevokedFamilies != 0 {
		w.t.Errorf("the provider saw %+v", s)
	}
	w.t.Logf("provider: %+v", w.provider.Stats())
}

// The database goes away in the middle of renewals and comes back: no rotated pair is lost.
func TestDatabaseOutage(t *testing.T) {
	t.Parallel()
	// what it has acknowledged must survive the kill
	db, err := pgtest.Start(pgtest.Options{TCP: true, Durable: true})
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Remove)
	const users = 40
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: 4 * time.Second, Latency: 100 * time.Millisecond},
		concurrency: 32,
		settings:    quick,
	})
	w.openPostgres(db.URL("postgres"))
	w.follow()
	w.start()
	w.start()
	p := w.publisher()
	for n := range users {
		w.login(p, user(n))
	}
	w.renewed(users, 1)
	for range 3 {
		db.Kill()
		<-time.After(3 * time.Second) // as long as it takes for many to fall due
		w.must(db.Restart())
		w.renewed(users, 1)
	}
	w.nobodySignedOut(users)
	// On a busy machine a pair of a renewal that is under way now may be parked for a moment too.
	w.await("no pair is parked", time.Minute, func(map[string][]schema.Event) bool {
		parked, err := w.js.Stream(t.Context(), topology.Parked)
		w.must(err)
		return parked.CachedInfo().State.Msgs == 0
	})
}

// The provider throttles, fails and refuses the client for a while. No user is signed out, and all
// are renewed again when it is over.
func TestProviderOutage(t *testing.T) {
	t.Parallel()
	const users = 40
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: 4 * time.Second},
		concurrency: 32,
		settings:    quick,
	})
	w.follow()
	w.start()
	w.start()
	var fault atomic.Pointer[standin.Fault]
	w.provider.SetFault(func(standin.Request) *standin.Fault { return fault.Load() })
	p := w.publisher()
	for n := range users {
		w.login(p, user(n))
	}
	w.renewed(users, 1)
	for _, f := range []standin.Fault{
		{Status: 503, Body: "down for maintenance"},
		{Status: 429, Header: http.Header{"Retry-After": {"1"}}},
		{Status: 401, Body: `{"error":"invalid_client"}`},
		{Drop: true},
	} {
		fault.Store(&f)
		<-time.After(5 * time.Second) // longer than a token lives
		fault.Store(nil)
		w.renewed(users, 1)
	}
	w.nobodySignedOut(users)
}
