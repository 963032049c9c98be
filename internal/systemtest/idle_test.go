package systemtest_test

import (
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// Users whom nothing asks for rest, the others are renewed on. A token read wakes one, and so does
// a login. A session that has reached its limit ends, with a word.
func TestIdleUsersRest(t *testing.T) {
	t.Parallel()
	for _, store := range []string{"natskv", "postgres"} {
		t.Run(store, func(t *testing.T) {
			settings := []string{"RENEWD_POLICY_IDLE=1h", "RENEWD_POLICY_SESSION_MAX=10d"}
			w := newWorld(t, options{
				provider: standin.Options{Lifetime: 4 * time.Second}, concurrency: 32,
				postgres: store == "postgres", settings: slices.Concat(quick, settings),
			})
			w.follow()
			get := w.reader(w.start())
			w.in("active", "idle", "returns", "outlasted")
			long := time.Now().Add(-24 * time.Hour)
			for _, user := range []string{"idle", "returns"} {
				w.change(user, func(g *grant.Grant) { g.LoginAt, g.ActiveAt = long, long })
			}
			w.change("outlasted", func(g *grant.Grant) {
				g.LoginAt = time.Now().Add(-240 * time.Hour)
			})
			w.are(map[string]grant.Status{
				"idle": grant.Dormant, "returns": grant.Dormant, "outlasted": grant.SignedOff,
			})
			asleep := w.provider.Renewals("idle")
			active := w.provider.Renewals("active")
			w.await("the others are renewed on", time.Minute, func(map[string][]schema.Event) bool {
				return w.provider.Renewals("active") >= active+3
			})
			if n := w.provider.Renewals("idle"); n != asleep {
				t.Errorf("a dormant user was renewed %d times", n-asleep)
			}
			if got, code := get(t.Context(), "idle"); got.AccessToken == "" {
				t.Errorf("a read does not wake: %s", code)
			}
			w.login(w.publisher(), "returns")
			w.are(map[string]grant.Status{
				"idle": grant.Live, "returns": grant.Live, "active": grant.Live,
			})
			if _, code := get(t.Context(), "outlasted"); code != schema.TokenSignedOut {
				t.Errorf("after the limit: %s", code)
			}
			w.onlyTheOutlastedIsTold()
			w.noReuse()
		})
	}
}

// are waits until users are of these statuses, with no login that waits.
func (w *world) are(want map[string]grant.Status) {
	w.t.Helper()
	w.await("the users are as they should be", time.Minute, func(map[string][]schema.Event) bool {
		for user, status := range want {
			g, err := w.store.Load(w.t.Context(), grant.Key{Provider: provider, User: user})
			w.must(err)
			if g.Status != status || g.Candidate != nil {
				return false
			}
		}
		return true
	})
}

// onlyTheOutlastedIsTold: to rest is no end, and no user was told to sign in again.
func (w *world) onlyTheOutlastedIsTold() {
	w.t.Helper()
	ends := 0
	for user, list := range w.heard() {
		for _, e := range list {
			if e.Type == schema.UserSynced {
				continue
			}
			ends++
			if user != "outlasted" || e.Type != schema.UserSignedOut ||
				decode[schema.SignedOut](w.t, e).Reason != schema.ReasonSessionMax {
				w.t.Errorf("%s got %s: %s", user, e.Type, e.Data)
			}
		}
	}
	if ends != 1 {
		w.t.Errorf("%d ends were told", ends)
	}
}
