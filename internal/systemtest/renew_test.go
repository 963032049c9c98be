package systemtest_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
)

// After the login only timers drive the renewals.
func TestTimersRenew(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"natskv", "postgres"} {
		t.Run(store, func(t *testing.T) {
			w := newWorld(t, options{
				provider:    standin.Options{Lifetime: 4 * time.Second},
				concurrency: 32,
				postgres:    store == "postgres",
				settings:    quick,
			})
			w.follow()
			w.start()
			w.start()
			p := w.publisher()
			for n := range 20 {
				w.login(p, user(n))
			}
			w.await("three renewals of each user", time.Minute,
				func(map[string][]schema.Event) bool {
					for n := range 20 {
						if w.provider.Renewals(user(n)) < 3 {
							return false
						}
					}
					return true
				})
			w.provider.EndSessions(user(7))
			w.await("the user whose session ended is told", time.Minute,
				func(all map[string][]schema.Event) bool {
					list := all[user(7)]
					return len(list) > 0 && list[len(list)-1].Type == schema.UserReauthRequired
				})
			w.checkProvider()
			for name, list := range w.heard() {
				for _, e := range list {
					if e.Type == schema.UserReauthRequired && name != user(7) ||
						e.Type == schema.UserRefreshFailed {
						t.Errorf("%s got %s: %s", name, e.Type, e.Data)
					}
				}
			}
		})
	}
}

// checkProvider compares what the provider saw with the promise.
func (w *world) checkProvider() {
	w.t.Helper()
	s := w.provider.Stats()
	if s.Reuse != 0 || s.RevokedFamilies != 0 || s.MaxInFlight > 1 || s.Replays != 0 {
		w.t.Errorf("the provider saw %+v", s)
	}
	w.t.Logf("provider: %+v", s)
}

// Many grants fall due in the same second. Each is also asked for through REQUESTS, and by
// duplicates from raw clients. There are four workers, each with its own connection. No token is
// presented twice.
func TestHerd(t *testing.T) {
	const workers = 4
	grants, soon := 20_000, 15*time.Second
	if testing.Short() {
		grants, soon = 2_000, 6*time.Second // the race detector takes five times as long
		t.Parallel()
	}
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: time.Hour},
		concurrency: 128,
		postgres:    true,
	})
	ctx := t.Context()
	due := time.Now().Add(soon).Truncate(time.Second)
	engine := w.engine(w.js)
	each(workers*8, grants, func(n int) {
		g := w.grantOf(user(n), due)
		rev, err := w.store.Save(ctx, g)
		if err == nil {
			g.Revision = rev
			err = engine.Arm(ctx, g.Key, due, g.NextTimer(due))
		}
		if err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d grants stored and armed, due in %v", grants, time.Until(due).Round(time.Millisecond))
	w.follow()
	for range workers {
		w.start()
	}
	<-time.After(time.Until(due.Add(-300 * time.Millisecond)))
	var clients sync.WaitGroup
	for c := range 2 {
		nc := w.connect().Conn()
		clients.Go(func() {
			for n := range grants {
				id := fmt.Sprintf("%s-%d", user(n), c)
				for range 2 {
					if err := raw(
						nc, "user.refresh_due."+provider+"."+user(n), `{"want":"tokens"}`, "ce-id",
						id, "Nats-Msg-Id", id,
					); err != nil {
						t.Error(err)
					}
				}
			}
			if err := nc.Flush(); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	w.await("every grant renewed", 5*time.Minute, func(map[string][]schema.Event) bool {
		return w.provider.Stats().Rotated >= grants
	})
	w.await("every user synced, and every queue empty", 5*time.Minute,
		func(all map[string][]schema.Event) bool {
			if len(all) < grants {
				return false
			}
			d, err := engine.Depths(ctx)
			for _, q := range d.Queues {
				if q.Waiting+q.InHand > 0 {
					return false
				}
			}
			return err == nil
		})
	w.checkProvider()
	each(32, grants, func(n int) {
		g, err := w.store.Load(ctx, grant.Key{Provider: provider, User: user(n)})
		if err != nil {
			t.Error(err)
		} else if !w.provider.Valid(g.Pair.Refresh.Reveal()) {
			t.Errorf("%s: the stored token is not the one that the provider takes", user(n))
		}
	})
}

// grantOf is a stored grant of a user who signed in long ago and whose access token has run out.
func (w *world) grantOf(name string, due time.Time) grant.Grant {
	tokens := w.provider.Login(name)
	pair := grant.Pair{
		Access:    secret.New(tokens.Access),
		Refresh:   secret.New(tokens.Refresh),
		ExpiresAt: due,
		Lifetime:  time.Hour,
		SentAt:    due.Add(-time.Hour),
	}
	g := storetest.SignedIn(grant.Key{Provider: provider, User: name}, pair,
		grant.Position{Stream: due, Sequence: 1},
		grant.Turn{Now: time.Now(), Nonce: name, Policy: &w.policy})
	g.NextDueAt = due
	return g
}

// each runs f for 0 to n-1 on some goroutines.
func each(goroutines, n int, f func(n int)) {
	var wg sync.WaitGroup
	for w := range goroutines {
		wg.Go(func() {
			for i := w; i < n; i += goroutines {
				f(i)
			}
		})
	}
	wg.Wait()
}
