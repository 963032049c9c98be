package systemtest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Nothing that one user's record, message or profile contains may stop another user. 2,500 bad ones
// of all kinds come again and again, and the healthy users beside them are as late as without them.
func TestTwoThousandBadOnesStopNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("with the race detector the bad ones take minutes")
	}
	const good, bad = 60, 500 // bad ones of each kind
	w := newWorld(t, options{
		provider:    standin.Options{Lifetime: time.Hour},
		concurrency: 16,
		settings:    quick,
	})
	w.follow()
	alone := w.lateness("alone", good)

	w.unreadable("damaged", bad)
	w.foreignKey("foreign", bad)
	w.parkedForeign("parked", bad)
	w.oversized("wide", bad)
	sealed := w.loginsOfALostKey("lost", bad)
	w.start()
	w.await("all bad ones were looked at", 3*time.Minute, func(map[string][]schema.Event) bool {
		return w.free(topology.Renewals, topology.ConsumerRenew(provider))
	})
	beside := w.lateness("beside", good)

	slices.Sort(alone)
	slices.Sort(beside)
	t.Logf("from due to outcome, middle and latest of %d: alone %v, %v; beside %d bad ones %v, %v",
		good, alone[good/2], alone[good-1], 5*bad, beside[good/2], beside[good-1])
	// The places of bad messages become free by themselves: no delivery of them waits for its
	// acknowledgement.
	w.await("no place is held", time.Minute, func(map[string][]schema.Event) bool {
		return w.free(topology.Renewals, topology.ConsumerRenew(provider)) &&
			w.free(topology.Renewals, topology.ConsumerDeferred) &&
			w.free(topology.Logins, topology.ConsumerLogin)
	})
	waiting := 0
	for _, name := range sealed {
		if waits, err := w.engine(w.js).LoginWaits(t.Context(), grant.Key{
			Provider: provider,
			User:     name,
		}); err != nil {
			t.Fatal(err)
		} else if waits {
			waiting++
		}
	}
	if waiting != bad {
		t.Errorf("%d of %d logins wait for their key", waiting, bad)
	}
	for name, list := range w.heard() {
		ids := map[string]bool{}
		for _, e := range list {
			if ids[e.ID] {
				t.Errorf("%s: outcome %s is there twice", name, e.ID)
			}
			if ids[e.ID] = true; e.Type == schema.UserReauthRequired {
				t.Errorf("%s was signed out", name)
			}
		}
	}
}

// free reports whether no message waits on a durable, and none is being handled.
func (w *world) free(base, durable string) bool {
	c, err := w.js.Consumer(context.Background(), base, durable)
	return err == nil && c.CachedInfo().NumAckPending == 0 && c.CachedInfo().NumPending == 0
}

// lateness stores users who are signed in, each due now. It lets workers renew them and returns how
// long each renewal took.
func (w *world) lateness(prefix string, n int) []time.Duration {
	w.t.Helper()
	e := w.engine(w.js)
	due := time.Now()
	for i := range n {
		g := w.grantOf(fmt.Sprint(prefix, i), due)
		_, err := w.store.Save(w.t.Context(), g)
		w.must(err)
		w.must(e.Arm(w.t.Context(), g.Key, due, g.NextTimer(due)))
	}
	if len(w.workers) == 0 {
		w.start()
		defer w.stop()
	}
	took := map[string]time.Duration{}
	w.await(prefix+": the users who are well are renewed", time.Minute,
		func(all map[string][]schema.Event) bool {
			for name, list := range all {
				if strings.HasPrefix(name, prefix) && took[name] == 0 &&
					list[0].Type == schema.UserSynced {
					took[name] = list[0].Time.Sub(due)
				}
			}
			return len(took) == n
		})
	var all []time.Duration
	for _, d := range took {
		all = append(all, d)
	}
	return all
}

// wake makes a user due, for a command that is to be answered.
func (w *world) wake(name string) {
	w.t.Helper()
	cause := schema.Cause{
		ID:     "r-" + name,
		Type:   schema.UserRefreshDue,
		Source: "/test",
		Time:   time.Now(),
	}
	w.must(w.engine(w.js).Wake(w.t.Context(), grant.Key{Provider: provider, User: name}, grant.Work{
		Cause: cause,
	}))
}

// unreadable stores bytes that are not a record.
func (w *world) unreadable(prefix string, n int) {
	w.t.Helper()
	kv, err := w.js.KeyValue(w.t.Context(), topology.BucketGrants)
	w.must(err)
	each(16, n, func(i int) {
		_, err := kv.Put(w.t.Context(), provider+"."+fmt.Sprint(prefix, i),
			[]byte("no record of ours"))
		w.must(err)
		w.wake(fmt.Sprint(prefix, i))
	})
}

// foreignKey stores records that were sealed by another keyring.
func (w *world) foreignKey(prefix string, n int) {
	w.t.Helper()
	ours := w.keys
	var err error
	w.keys, err = seal.NewKeyring(time.Now())
	w.must(err)
	w.openKV()
	each(16, n, func(i int) {
		_, err := w.store.Save(w.t.Context(), w.grantOf(fmt.Sprint(prefix, i), time.Now()))
		w.must(err)
	})
	w.keys = ours
	w.openKV()
	for i := range n {
		w.wake(fmt.Sprint(prefix, i))
	}
}

// parkedForeign stores grants in doubt whose parked pairs no worker can open.
func (w *world) parkedForeign(prefix string, n int) {
	w.t.Helper()
	e := w.engine(w.js)
	each(16, n, func(i int) {
		g := w.grantOf(fmt.Sprint(prefix, i), time.Now()).Doubted(time.Now())
		_, err := w.store.Save(w.t.Context(), g)
		w.must(err)
		_, err = e.Park(w.t.Context(), g.Key, grant.Parcel{
			Version: g.Version + 1,
			Parent:  g.Fingerprint(),
			Sealed:  []byte("of another keyring"),
		})
		w.must(err)
		w.wake(g.User)
	})
}

// oversized stores grants of users whose profile fits no message.
func (w *world) oversized(prefix string, n int) {
	w.t.Helper()
	each(16, n, func(i int) {
		name := fmt.Sprint(prefix, i)
		g := w.grantOf(name, time.Now())
		w.provider.Edit(name, func(profile map[string]any) {
			profile["odd"] = "nul \x00 " + strings.Repeat("x", 700<<10)
		})
		_, err := w.store.Save(w.t.Context(), g)
		w.must(err)
		w.wake(name)
	})
}

// loginsOfALostKey publishes logins that no worker can open.
func (w *world) loginsOfALostKey(prefix string, n int) (names []string) {
	w.t.Helper()
	other, err := seal.NewKeyring(time.Now())
	w.must(err)
	p, err := publishers.New(w.connect().Conn(), publishers.WithSource("/app"),
		publishers.WithJWKS(other.JWKS()))
	w.must(err)
	for i := range n {
		name := fmt.Sprint(prefix, i)
		_, err := p.Login(w.t.Context(), provider, name, publishers.Tokens{
			AccessToken:  "a",
			RefreshToken: "r",
			ExpiresIn:    time.Hour,
		})
		w.must(err)
		names = append(names, name)
	}
	return names
}
