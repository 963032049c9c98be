package systemtest_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/schema"
)

// Users who sign in and out at once, in both orders, end in the state that the order of their
// commands says. Each command is answered, and what was to be revoked is dead at the provider.
func TestLogouts(t *testing.T) {
	for name, postgres := range map[string]bool{"postgres": true, "nats kv": false} {
		t.Run(name, func(t *testing.T) {
			const users = 20
			w := newWorld(t, options{
				provider:    standin.Options{},
				concurrency: 8,
				postgres:    postgres,
			})
			w.follow()
			w.start()
			w.start()
			all := make([]int, users)
			for n := range all {
				all[n] = n
			}
			w.signIn(all...)
			p := w.publisher()
			out := map[int]string{}
			for n := range all {
				if n%2 == 1 { // signed in again before the logout
					w.login(p, user(n))
				}
				logout := schema.Logout{Revoke: n%4 < 2, Reason: "by hand"}
				r, err := p.Logout(t.Context(), provider, user(n), logout)
				w.must(err)
				out[n] = r.ID
				if n%5 == 0 { // signed in again after the logout
					w.login(p, user(n))
				}
			}
			w.signedOut(out)
			w.nobodyIsBack(all)
			// renewd does not know this user.
			r, err := p.Logout(t.Context(), provider, "stranger", schema.Logout{})
			w.must(err)
			w.await("the stranger", time.Minute, func(heard map[string][]schema.Event) bool {
				return len(heard["stranger"]) == 1
			})
			d := decode[schema.RefreshFailed](t, w.heard()["stranger"][0])
			if d.Reason != schema.ReasonUnknownGrant || d.Cause.ID != r.ID {
				t.Errorf("the stranger: %+v", d)
			}
		})
	}
}

// signedOut waits for the outcome of each logout, except for those that a newer login answers.
func (w *world) signedOut(out map[int]string) {
	w.t.Helper()
	w.await("everybody is out", time.Minute, func(heard map[string][]schema.Event) bool {
		missing := 0
		for n, id := range out {
			told := n%5 == 0
			for _, e := range heard[user(n)] {
				if e.Type != schema.UserSignedOut {
					continue
				}
				d := decode[schema.SignedOut](w.t, e)
				if d.Cause.ID != id || d.Reason != "by hand" || d.Revoked != (n%4 < 2) {
					w.t.Errorf("user %d: %+v", n, d)
				}
				told = true
			}
			if !told {
				missing++
			}
		}
		return missing == 0
	})
}

// nobodyIsBack wants users whose last command was a logout to be signed out, and users who signed
// in after it to be signed in.
func (w *world) nobodyIsBack(users []int) {
	w.t.Helper()
	for _, n := range users {
		want := grant.SignedOff
		if n%5 == 0 {
			want = grant.Live
		}
		g := w.settled(n, want)
		if g.Status != want || g.Candidate != nil ||
			(want == grant.SignedOff) != g.Pair.Refresh.IsZero() {
			w.t.Errorf("user %d is %s, candidate %v", n, g.Status, g.Candidate)
		}
	}
	w.noReuse()
}

// settled is the user's record once it has this status and no login waits. After a while it is the
// record as it is.
func (w *world) settled(n int, want grant.Status) grant.Grant {
	w.t.Helper()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for late := time.After(testkit.Patience); ; {
		g, err := w.store.Load(w.t.Context(), keyOf(n))
		w.must(err)
		if g.Status == want && g.Candidate == nil {
			return g
		}
		select {
		case <-late:
			return g
		case <-poll.C:
		}
	}
}
