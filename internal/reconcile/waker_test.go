package reconcile_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
)

// When a provider's trouble is over, users who failed before that, or were put off, are tried at
// once, and what they wait for stays what it is. All other users keep their time, and so does what
// is due already.
func TestWhoeverWaitsForNothingIsWoken(t *testing.T) {
	js, e := fresh(t)
	now, hour := time.Now(), time.Now().Add(time.Hour)
	over := now.Add(-time.Second)
	failed := func(g grant.ListEntry, at time.Time) grant.ListEntry {
		g.Attempts, g.FailedAt = 1, at
		return g
	}
	verdict := func(g grant.ListEntry, unsure bool) grant.ListEntry {
		g.Verdict = &grant.Verdict{At: over, Unsure: unsure}
		return failed(g, now.Add(-time.Minute))
	}
	grants := map[string]struct {
		grant.ListEntry
		woken bool
	}{
		"failed": {
			failed(record("failed", grant.Live, hour), now.Add(-time.Minute)), true,
		},
		"refused oddly":   {verdict(record("refused oddly", grant.Live, hour), true), true},
		"put off":         {record("put off", grant.Live, now.Add(-time.Minute)), true},
		"refused plainly": {verdict(record("refused plainly", grant.Live, hour), false), false},
		"failed since":    {failed(record("failed since", grant.Live, hour), now), false},
		"well":            {record("well", grant.Live, hour), false},
		"fires soon": {
			failed(record("fires soon", grant.Live, now.Add(4*time.Second)), now.Add(-time.Minute)),
			false,
		},
		"out": {
			failed(record("out", grant.ReauthRequired, hour), now.Add(-time.Minute)), false,
		},
		"no timer": {failed(record("no timer", grant.Live, hour), now.Add(-time.Minute)), false},
	}
	var store listed
	var want []string
	for name, g := range grants {
		store.grants = append(store.grants, g.ListEntry)
		if at := hour; name != "no timer" {
			if name == "fires soon" {
				at = g.NextDueAt
			}
			must(t, e.Arm(t.Context(), g.Key, at, command("r-"+name)))
		}
		if g.woken {
			want = append(want, "r-"+name)
		}
	}
	other := grant.ListEntry{
		Grant: grant.Grant{
			Key:       grant.Key{Provider: "else", User: "u"},
			Status:    grant.Live,
			NextDueAt: now.Add(-time.Hour),
		},
	}
	store.grants = append(store.grants, other, grant.ListEntry{
		Grant: grant.Grant{Key: alice},
		Err:   grant.ErrUnreadable,
	})
	w := reconcile.Waker{Store: store, Engine: e}
	for round, n := range []int{3, 0} { // the second finds nothing to do
		if got, err := w.Wake(t.Context(), alice.Provider, over); got != n || err != nil {
			t.Errorf("round %d: %d woken, want %d; %v", round, got, n, err)
		}
	}
	var got []string
	for range want {
		m := renewal(t, js)
		_, work, err := e.ParseWork(m.Subject(), map[string][]string(m.Headers()))
		must(t, err)
		got = append(got, work.Cause.ID)
		ack(t, m)
	}
	slices.Sort(want)
	slices.Sort(got)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("woken %v, want %v", got, want)
	}
}
