package refresh_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

var logoutCause = schema.Cause{ID: "logout", Type: schema.UserLogout, Source: "/app", Time: start}

// logout ends the user's session as the consumer of logins does. It tells if tell does.
func (w *world) logout(tell bool) {
	w.t.Helper()
	ctx := context.Background()
	for {
		g := mustStored(w)
		now := w.now()
		t := grant.Turn{
			Work: grant.Work{Cause: logoutCause}, Nonce: "logout", BeganAt: now, Now: now,
			Policy: &policy, Told: g.ToldAt(w.published),
		}
		place := grant.Position{Stream: start, Sequence: uint64(w.issued) + 1, Time: now}
		next := g.LoggedOut(t, place, false, "")
		revision, err := w.store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.issued++
		if !tell {
			return
		}
		next.Revision = revision
		w.setAt(func(string) error { return nil })
		for _, p := range next.Untold(schema.Cause{}, next.ToldAt(w.published)) {
			e := next.Told(p, "/renewd", now, policy.Shown)
			err := (streamAt{w}).PublishMarked(ctx, e, grant.Mark{Version: p.Version})
			if err != nil {
				w.t.Fatal(err)
			}
		}
		delete(w.timers, key)
		w.save(next.Rested(t))
		return
	}
}

// signedOff holds what must be true of a user who signed out, whatever was under way.
func (w *world) signedOff() {
	w.t.Helper()
	g := mustStored(w)
	if g.Status != grant.SignedOff || g.Pair != (grant.Pair{}) || g.Verdict != nil ||
		g.Doubt != nil {
		w.t.Errorf("the user is back: %s, refresh token %s", g.Status, g.Fingerprint())
	}
	if !g.NextDueAt.IsZero() {
		w.t.Errorf("due %v with nothing left to say", g.NextDueAt)
	}
	w.toldOnce(schema.UserSignedOut)
}

// toldOnce holds that no outcome was told twice, and that one of this type was told.
func (w *world) toldOnce(of schema.Type) {
	w.t.Helper()
	told := 0
	seen := map[string]bool{}
	for _, e := range w.outcomes {
		if seen[e.ID] {
			w.t.Errorf("%s %s is told twice", e.Type, e.ID)
		}
		seen[e.ID] = true
		if e.Type == of {
			told++
		}
	}
	if told != 1 {
		w.t.Errorf("%s was told %d times", of, told)
	}
}

// A user who signs out at any point of a renewal stays signed out: a rotated pair that comes in
// after is dropped, and what was asked for is answered.
func TestLoggedOutAtEachStep(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "killed before it tells": false} {
		t.Run(name, func(t *testing.T) {
			atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
				strike(func() error { w.logout(told); return nil })
				w.settle(work("r1"), 1)
				if !told { // the reconciler finds it
					w.settle(grant.Work{
						Cause: schema.Cause{ID: "repair-1", Type: schema.CauseRepair},
					}, 1)
				}
				w.signedOff()
				w.checkAnswered("r1")
				if a, ok := w.timers[key]; ok {
					w.fire()
					w.signedOff()
					if _, again := w.timers[key]; again {
						t.Errorf("a timer is left: %+v", a)
					}
				}
			})
		})
	}
}

// The next login begins another session.
func TestALoginAfterALogoutAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		strike(func() error {
			w.logout(true)
			w.advance(time.Second)
			w.login("b", 90*time.Second)
			return nil
		})
		w.settle(work("r1"), 1)
		w.settle(work("login-b"), 1)
		g := mustStored(w)
		if g.Status != grant.Live || g.Pair.Refresh.Reveal()[0] != 'b' || !w.accepted(g) {
			t.Errorf("%s, stored %s", g.Status, g.Pair.Refresh.Reveal())
		}
	})
}

// A request for a user who signed out is answered, and changes nothing.
func TestARequestForASignedOutUserIsRefused(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.logout(true)
	before := mustStored(w)
	w.settle(work("r1"), 1)
	e, _ := w.outcome("r1")
	d, err := schema.Data[schema.RefreshFailed](e)
	if err != nil || d.Reason != schema.ReasonSignedOut || d.NextAttemptAt != nil {
		t.Errorf("%+v, %v", d, err)
	}
	if mustStored(w).Revision != before.Revision || w.refreshed+len(w.revoked) > 0 {
		t.Error("something was done for it")
	}
}
