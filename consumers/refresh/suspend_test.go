package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// hold suspends the user, or resumes, as the consumer of logins does, but for its wait for what is
// under way. It tells of a suspension if tell does.
func (w *world) hold(of schema.Type, tell bool) {
	w.t.Helper()
	ctx := context.Background()
	cause := schema.Cause{ID: string(of), Type: of, Source: "/app", Time: start}
	for {
		g := mustStored(w)
		now := w.now()
		t := grant.Turn{
			Work:    grant.Work{Cause: cause, Mark: w.published},
			Nonce:   string(of),
			BeganAt: now,
			Now:     now,
			Policy:  &policy,
			Told:    g.ToldAt(w.published),
		}
		place := grant.Position{Stream: start, Sequence: uint64(w.issued) + 1, Time: now}
		change := grant.Grant.SuspendedBy
		if of == schema.UserResume {
			change = grant.Grant.ResumedBy
		}
		next := change(g, t, place)
		revision, err := w.store.Save(ctx, next)
		if errors.Is(err, grant.ErrConflict) {
			continue
		}
		if err != nil {
			w.t.Fatal(err)
		}
		w.issued++
		if !tell || of == schema.UserResume {
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
		_, err = w.store.Save(ctx, next.Rested(t))
		if err != nil && !errors.Is(err, grant.ErrConflict) {
			w.t.Fatal(err)
		}
		return
	}
}

// isSuspended holds what must be true of a user who was suspended, whatever was under way.
func (w *world) isSuspended() {
	w.t.Helper()
	g := mustStored(w)
	if g.Status != grant.Suspended || g.IsSuperseded() || !g.NextDueAt.IsZero() {
		w.t.Errorf("%s, due %v", g.Status, g.NextDueAt)
	}
	if !w.accepted(g) && (g.Doubt == nil || g.Doubt.Fingerprint != g.Fingerprint()) {
		w.t.Error("the session is lost, and nothing says so")
	}
	w.toldOnce(schema.UserSuspended)
}

// A user who is suspended at any point of a renewal stays suspended, with the newest pair; what was
// asked for is answered; and a resumption goes on from there.
func TestSuspendedAtEachStep(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "killed before it tells": false} {
		t.Run(name, func(t *testing.T) {
			atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
				strike(func() error { w.hold(schema.UserSuspend, told); return nil })
				w.settle(work("r1"), 1)
				if !told { // the reconciler finds it
					w.settle(grant.Work{
						Cause: schema.Cause{ID: "repair-1", Type: schema.CauseRepair},
					}, 1)
				}
				w.isSuspended()
				w.checkAnswered("r1")
				spent := w.refreshed
				if _, ok := w.timers[key]; ok {
					w.fire()
				}
				w.advance(48 * time.Hour)
				w.settle(work("r2"), 1)
				w.checkAnswered("r2")
				w.isSuspended()
				if _, again := w.timers[key]; again || w.refreshed != spent {
					t.Errorf("a timer is left: %t, presented %d times more",
						again, w.refreshed-spent)
				}
				w.hold(schema.UserResume, true)
				w.settle(work("resume"), 1)
				w.checkAnswered("resume")
				g := mustStored(w)
				if g.Status != grant.Live || !w.accepted(g) || w.timers[key].at.IsZero() {
					t.Errorf("resumed: %s, timer %v", g.Status, w.timers[key].at)
				}
			})
		})
	}
}

// The answer to a presentation that was under way is lost: what is known of that outlives the
// suspension, and the token is presented again by the resumption.
func TestALostAnswerOutlivesASuspension(t *testing.T) {
	w := newWorld(t)
	w.grace = 72 * time.Hour
	w.login("a", 10*time.Second)
	lost := 0
	w.setAt(func(effect string) error {
		if effect != "presented" {
			return nil
		}
		if lost++; lost == 1 {
			return errors.New("cut off") // it is asked again at once
		}
		w.hold(schema.UserSuspend, true)
		return errors.New("cut off")
	})
	w.settle(work("r1"), 1)
	if g := mustStored(w); g.Status != grant.Suspended || g.Doubt == nil {
		t.Fatalf("%s, doubt %v", g.Status, g.Doubt)
	}
	w.checkAnswered("r1")
	w.advance(24 * time.Hour)
	w.hold(schema.UserResume, true)
	w.settle(work("resume"), 1)
	if g := mustStored(w); g.Status != grant.Live || !w.accepted(g) || g.Doubt != nil {
		t.Errorf("%s, doubt %v", g.Status, g.Doubt)
	}
}

// A refusal in clear words that was under way ends nothing, and says that the token is not spent.
// No claim is left to say that it may be.
func TestARefusalOfASuspendedUserLeavesNoClaim(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.refuse = &grant.Fault{
		Class: grant.Permanent, Op: "refresh", Code: "invalid_grant", Reason: schema.ReasonRevoked,
	}
	w.setAt(func(effect string) error {
		if effect == "presented" {
			w.hold(schema.UserSuspend, true)
		}
		return nil
	})
	w.settle(work("r1"), 1)
	w.checkAnswered("r1")
	g := mustStored(w)
	if g.Status != grant.Suspended || g.Claim != nil || g.Doubt != nil || g.Verdict != nil {
		t.Errorf("%s, claim %+v, doubt %+v, verdict %+v", g.Status, g.Claim, g.Doubt, g.Verdict)
	}
}

// The next login ends a suspension, at whatever step of its own renewal the suspension came.
func TestALoginAfterASuspensionAtEachStep(t *testing.T) {
	atEach(t, func(t *testing.T, w *world, strike func(func() error)) {
		strike(func() error {
			w.hold(schema.UserSuspend, true)
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

// A pair of a suspended user that is parked waits for the resumption. A newer login does not.
func TestALoginDoesNotWaitForTheParkedPairOfASuspendedUser(t *testing.T) {
	for name, stranger := range map[string]bool{"proven": false, "rejected": true} {
		w := newWorld(t)
		w.login("a", 10*time.Second)
		w.crashParked(t.Context(), work("r1"), 1)
		w.hold(schema.UserSuspend, true)
		w.advance(time.Second)
		token := w.candidate("b", -time.Second)
		if stranger {
			w.strangers = map[string]error{}
			for n := range 9 {
				w.strangers[fmt.Sprintf("access-b-%d", n)] = grant.ErrSubjectMismatch
			}
		}
		w.settle(loginWork(token), 1)
		want := byte('b')
		if stranger {
			w.hold(schema.UserResume, true)
			w.settle(work("resume"), 1)
			want = 'a'
		}
		g := mustStored(w)
		if g.Status != grant.Live || g.Pair.Refresh.Reveal()[0] != want || !w.accepted(g) ||
			w.reuse > 0 || g.Candidate != nil {
			t.Errorf("%s: %s, stored %s, %d reuses",
				name, g.Status, g.Pair.Refresh.Reveal(), w.reuse)
		}
	}
}
