package systemtest_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Users who are suspended and resumed at once, amid renewals and logins, are left as the order of
// their commands says, with the session they had; each command is answered; and nothing is
// presented of one who rests.
func TestSuspensions(t *testing.T) {
	for name, postgres := range map[string]bool{"postgres": true, "nats kv": false} {
		t.Run(name, func(t *testing.T) {
			const users = 20
			w := newWorld(t, options{concurrency: 8, postgres: postgres})
			w.follow()
			w.start()
			w.start()
			all := make([]int, users)
			for n := range all {
				all[n] = n
			}
			w.signIn(all...)
			p := w.publisher()
			asked := map[int][]string{}
			for n := range all {
				ask := func(id string, err error) {
					w.must(err)
					asked[n] = append(asked[n], id)
				}
				if n%2 == 1 { // a renewal under way
					r, err := p.RefreshDue(t.Context(), provider, user(n), schema.RefreshDue{
						Want: schema.WantTokens,
					})
					ask(r.ID, err)
				}
				r, err := p.Suspend(t.Context(), provider, user(n), schema.Suspend{
					Reason: "by hand",
				})
				ask(r.ID, err)
				switch n % 4 {
				case 2:
					r, err := p.Resume(t.Context(), provider, user(n), schema.Resume{})
					ask(r.ID, err)
				case 3:
					w.login(p, user(n))
				}
			}
			w.answeredSince(asked)
			for n := range all {
				want := grant.Suspended
				if n%4 >= 2 {
					want = grant.Live
				}
				g := w.settled(n, want)
				if g.Status != want || g.Candidate != nil || g.Pair.Refresh.IsZero() {
					t.Errorf("user %d is %s, candidate %v", n, g.Status, g.Candidate)
				}
			}
			w.restingPresentsNothing(all)
			w.noReuse()
		})
	}
}

// answeredSince waits until each user has an outcome that names the last of their commands, or one
// that began after it was accepted.
func (w *world) answeredSince(asked map[int][]string) {
	w.t.Helper()
	w.await("everybody is answered", time.Minute, func(heard map[string][]schema.Event) bool {
		for n, ids := range asked {
			last, named := ids[len(ids)-1], false
			for _, e := range heard[user(n)] {
				named = named || decode[struct{ Cause schema.Cause }](w.t, e).Cause.ID == last
			}
			if n%4 == 3 { // the login answers
				named = named || heard[user(n)][len(heard[user(n)])-1].Type == schema.UserSynced
			}
			if !named {
				return false
			}
		}
		return true
	})
}

// restingPresentsNothing asks for tokens of all: those who are suspended are refused, and the pair
// stays as it is. A resumption brings it back.
func (w *world) restingPresentsNothing(users []int) {
	w.t.Helper()
	p := w.publisher()
	before := map[int]grant.Grant{}
	for _, n := range users {
		if n%4 >= 2 {
			continue
		}
		g, err := w.store.Load(w.t.Context(), keyOf(n))
		w.must(err)
		before[n] = g
	}
	asked := map[int][]string{}
	for n := range before {
		r, err := p.RefreshDue(w.t.Context(), provider, user(n), schema.RefreshDue{
			Want: schema.WantTokens,
		})
		w.must(err)
		asked[n] = []string{r.ID}
	}
	w.answeredSince(asked)
	resumed := map[int][]string{}
	for n, was := range before {
		for _, e := range w.heard()[user(n)] {
			if e.Type != schema.UserRefreshFailed {
				continue
			}
			if d := decode[schema.RefreshFailed](w.t, e); d.Reason != schema.ReasonSuspended {
				w.t.Errorf("user %d: %+v", n, d)
			}
		}
		g, err := w.store.Load(w.t.Context(), keyOf(n))
		w.must(err)
		if g.Fingerprint() != was.Fingerprint() || !g.Resting() {
			w.t.Errorf("user %d was renewed: %+v", n, g)
		}
		r, err := p.Resume(w.t.Context(), provider, user(n), schema.Resume{})
		w.must(err)
		resumed[n] = []string{r.ID}
	}
	w.answeredSince(resumed)
	for n := range resumed {
		if g := w.settled(n, grant.Live); g.Status != grant.Live {
			w.t.Errorf("user %d is %s", n, g.Status)
		}
	}
}
