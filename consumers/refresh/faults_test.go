package refresh_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

func data[T any](t testing.TB, e schema.Event) T {
	t.Helper()
	v, err := schema.Data[T](e)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// The last outcome, which must be of this type.
func (w *world) last(typ schema.Type) schema.Event {
	w.t.Helper()
	if len(w.outcomes) == 0 || w.outcomes[len(w.outcomes)-1].Type != typ {
		w.t.Fatalf("want %s last, have %v", typ, w.outcomes)
	}
	return w.outcomes[len(w.outcomes)-1]
}

func TestAGoodTokenIsNotRotated(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.settle(work("login"), 1)
	s := data[schema.Synced](t, w.last(schema.UserSynced))
	if s.Refreshed || len(s.Changed) != 2 || s.Profile.Email != "jane@example.com" {
		t.Errorf("first sync %+v", s)
	}
	before := mustStored(w).Revision
	w.settle(work("r1"), 1)
	s = data[schema.Synced](t, w.last(schema.UserSynced))
	if len(s.Changed) != 0 || s.Profile == nil {
		t.Errorf("second sync %+v", s)
	}
	if w.refreshed != 0 || mustStored(w).Revision != before {
		t.Error("an unchanged profile was written, or the token rotated")
	}
}

func TestAccessRefusedFallsThroughToARefresh(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.userinfo = grant.ErrAccessRefused
	w.setAt(func(effect string) error {
		if effect == "save" {
			w.userinfo = nil
		}
		return nil
	})
	w.settle(work("r1"), 1)
	if s := data[schema.Synced](t, w.last(schema.UserSynced)); !s.Refreshed || w.refreshed != 1 {
		t.Errorf("%+v after %d rotations", s, w.refreshed)
	}
}

func TestAccessRefusedRightAfterARotationIsNoReasonForAnother(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.userinfo = grant.ErrAccessRefused
	w.settle(work("r1"), 1)
	s := data[schema.Synced](t, w.last(schema.UserSynced))
	if !s.Refreshed || s.Profile != nil || w.refreshed != 1 {
		t.Errorf("%+v after %d rotations", s, w.refreshed)
	}
}

func TestEndedSessionIsConfirmedThenTold(t *testing.T) {
	w := newWorld(t)
	token := w.login("a", 10*time.Second)
	w.families[token].dead = true
	w.settle(work("r1"), 1)
	if len(w.outcomes) != 0 {
		t.Fatalf("told before it was confirmed: %v", w.outcomes)
	}
	if wait := w.timers[key].at.Sub(w.now()); wait < policy.ConfirmMin {
		t.Errorf("asked again after %v", wait)
	}
	w.fire()
	if len(w.outcomes) != 0 {
		t.Fatalf("told before anybody knows what others were told: %v", w.outcomes)
	}
	w.fire()
	d := data[schema.ReauthRequired](t, w.last(schema.UserReauthRequired))
	if d.Reason != schema.ReasonRevoked || d.ProviderError != "invalid_grant" ||
		d.Cause.ID != "r1" {
		t.Errorf("told %+v", d)
	}
	if _, armed := w.timers[key]; armed {
		t.Error("a dead grant has a timer")
	}
	w.settle(work("r2"), 1)
	failed := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if failed.Reason != schema.ReasonReauthRequired || failed.NextAttemptAt != nil {
		t.Errorf("a request for a dead grant is answered %+v", failed)
	}
	w.login("b", 90*time.Second)
	w.settle(work("login-b"), 1)
	if d := data[schema.Synced](t, w.last(schema.UserSynced)); !d.Recovered {
		t.Error("the first sync after signing in again is not a recovery")
	}
	w.settle(work("r3"), 1)
	if d := data[schema.Synced](t, w.last(schema.UserSynced)); d.Recovered {
		t.Error("a recovery is said twice")
	}
}

// A replica that has not seen the rotation yet refuses once: no user is signed out.
func TestOneRefusalSignsNobodyOut(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.refuse = &grant.Fault{
		Class:  grant.Permanent,
		Code:   "invalid_grant",
		Reason: schema.ReasonRevoked,
	}
	w.settle(work("r1"), 1)
	w.refuse = nil
	w.fire()
	d := data[schema.Synced](t, w.last(schema.UserSynced))
	if !d.Refreshed || !d.Recovered || d.Cause.ID != "r1" {
		t.Errorf("%+v", d)
	}
}

func TestOutagesNeverSignOut(t *testing.T) {
	for _, class := range []grant.Class{
		grant.Unsent, grant.Ambiguous, grant.Throttled, grant.Config, grant.Unknown,
	} {
		t.Run(string(class), func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 10*time.Second)
			w.refuse = &grant.Fault{Class: class, Status: 500, RetryAfter: 3 * time.Second}
			w.settle(work("r1"), 1)
			for range 30 {
				w.fire()
			}
			if g := mustStored(w); g.Status != grant.Live || g.Pair.Refresh.IsZero() {
				t.Fatalf("the grant is %s", g.Status)
			}
			e, ok := w.outcome("r1")
			if !ok || e.Type != schema.UserRefreshFailed {
				t.Fatalf("the command was answered %v", e.Type)
			}
			d := data[schema.RefreshFailed](t, e)
			if d.NextAttemptAt == nil || d.Attempts != policy.Tries {
				t.Errorf("answered %+v", d)
			}
			w.refuse = nil
			w.fire()
			if d := data[schema.Synced](t, w.last(schema.UserSynced)); !d.Recovered {
				t.Errorf("back again: %+v", d)
			}
		})
	}
}

func TestLostReplyIsReplayedAtOnceWithinTheGrace(t *testing.T) {
	w := newWorld(t)
	w.grace = 30 * time.Second
	w.login("a", 10*time.Second)
	w.lose = 1
	w.settle(work("r1"), 1)
	d := data[schema.Synced](t, w.last(schema.UserSynced))
	if !d.Refreshed || w.replays != 1 || w.reuse != 0 {
		t.Errorf("%+v with %d replays", d, w.replays)
	}
	if g := mustStored(w); !w.accepted(g) || g.Doubt != nil {
		t.Errorf("accepted %v, doubt %v", w.accepted(g), g.Doubt)
	}
}

// A user who has just signed in is not told to sign in again, though the session before is dead for
// sure.
func TestALoginThatWaitsHoldsTheVerdict(t *testing.T) {
	w := newWorld(t)
	token := w.login("a", 10*time.Second)
	w.families[token].dead = true
	w.settle(work("r1"), 1)
	w.fire()
	w.loginWaits = true
	w.advance(policy.ConfirmMin / 3)
	if err := w.deliver(context.Background(), work("r1"), 1); err != nil || len(w.outcomes) != 0 {
		t.Fatalf("%v, told %v", err, w.outcomes)
	}
	if g := mustStored(w); g.Claim != nil || g.Doubt != nil {
		t.Errorf("a refusal that was held is presented again as if nobody knew how it ended: "+
			"claim %v", g.Claim)
	}
	w.loginWaits = false
	w.login("b", 90*time.Second)
	w.settle(work("login-b"), 1)
	if w.last(schema.UserSynced); len(w.outcomes) != 1 {
		t.Errorf("told %v", w.outcomes)
	}
}

func TestLostReplyWithoutGraceIsToldHonestly(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.lose = 1
	w.settle(work("r1"), 1)
	w.fire()
	w.fire()
	d := data[schema.ReauthRequired](t, w.last(schema.UserReauthRequired))
	if d.Reason != schema.ReasonRotationLost {
		t.Errorf("told %+v", d)
	}
}

func TestSubjectMismatchStoresNothing(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.userinfo = grant.ErrSubjectMismatch
	w.settle(work("r1"), 1)
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonSubjectMismatch {
		t.Errorf("%+v", d)
	}
	if g := mustStored(w); g.Profile != "" || g.Status != grant.Live {
		t.Errorf("stored %s, %s", g.Profile, g.Status)
	}
	if w.timers[key].at.After(mustStored(w).Pair.ExpiresAt) {
		t.Error("the tokens are left to expire because the profile fails")
	}
}

func TestNoRefreshTokenIsToldOnce(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	w.loseRefreshToken()
	w.settle(work("login"), 1)
	w.last(schema.UserSynced)
	ends := mustStored(w).Pair.ExpiresAt
	w.timers[key] = armed{ends, new(mustStored(w)).NextTimer(ends)}
	w.fire()
	d := data[schema.ReauthRequired](t, w.last(schema.UserReauthRequired))
	if d.Reason != schema.ReasonNoRefreshToken {
		t.Errorf("%+v", d)
	}
	w.settle(work("r2"), 1)
	w.last(schema.UserRefreshFailed)
}

// Where the provider does not say when it answered, a token's life counts from the call, by the
// clock that workers share.
func TestALifeCountsFromTheCallByTheStreamsClock(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.noDate = true
	w.settle(work("r1"), 1)
	p := mustStored(w).Pair
	if !p.SentAt.Equal(w.now()) || !p.ExpiresAt.Equal(w.now().Add(100*time.Second)) {
		t.Errorf("sent at %v, ends at %v; it is %v", p.SentAt, p.ExpiresAt, w.now())
	}
}

func TestUnknownGrantIsAnswered(t *testing.T) {
	w := newWorld(t)
	w.settle(work("r1"), 1)
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonUnknownGrant {
		t.Errorf("%+v", d)
	}
}

// The lease is lost, or the process is told to stop, while the provider answers. The answer is
// still read and saved.
func TestAnswerIsReadAfterTheLeaseIsLost(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	ctx, end := context.WithCancelCause(context.Background())
	w.setAt(func(effect string) error {
		if effect == "presented" {
			end(runner.ErrLeaseLost)
		}
		return nil
	})
	_ = w.deliver(ctx, work("r1"), 1) // the worker that has the message now goes on from the save
	if g := mustStored(w); !w.accepted(g) || g.Progress == "" {
		t.Error("the answer was thrown away, and the pair with it")
	}
	w.setAt(func(string) error { return nil })
	w.settle(work("r1"), 2)
	if w.checkAnswered("r1"); w.refreshed != 1 {
		t.Errorf("%d rotations", w.refreshed)
	}
}

// The store goes down between the provider's answer and the save: the pair is parked, the worker
// dies, the store comes back, and another worker finds the pair.
func TestParkedPairOutlivesItsWorker(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	ctx, kill := context.WithCancel(context.Background())
	defer kill()
	down := errors.New("connection refused")
	w.setAt(func(effect string) error {
		if strings.HasPrefix(effect, "save") {
			return down
		}
		if effect == "parked" {
			kill()
		}
		return nil
	})
	if err := w.deliver(ctx, work("r1"), 1); err == nil {
		t.Fatal("acknowledged without a save")
	}
	if len(w.parkedFor) != 1 {
		t.Fatal("the pair was not parked")
	}
	w.setAt(func(string) error { return nil })
	w.advance(11 * time.Second)
	w.settle(work("r1"), 2)
	if g := mustStored(w); !w.accepted(g) || w.refreshed != 1 || w.reuse != 0 {
		t.Errorf("accepted %v after %d rotations and %d reuses",
			w.accepted(g), w.refreshed, w.reuse)
	}
	if len(w.parkedFor) != 0 {
		t.Error("the parked pair is left behind")
	}
}

// The store is down for a while and the worker lives: the same pair is saved, nothing is asked of
// the provider again.
func TestStoreOutageKeepsThePair(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	left := 3
	w.setAt(func(effect string) error {
		if effect == "save" && left > 0 {
			left--
			return errors.New("connection refused")
		}
		return nil
	})
	w.settle(work("r1"), 1)
	if g := mustStored(w); !w.accepted(g) || w.refreshed != 1 {
		t.Errorf("accepted %v after %d rotations", w.accepted(g), w.refreshed)
	}
	if len(w.parkedFor) != 0 {
		t.Error("the parked pair is left behind")
	}
}

// The store hangs instead of failing. The pair is parked before it is known how the save will end,
// and not left behind when the save ends well.
func TestAPairIsParkedWhileTheStoreTakesItsTime(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	parked := make(chan struct{})
	held := -1
	w.setAt(func(effect string) error {
		switch effect {
		case "save":
			<-parked // never, if nothing parks the pair
			w.mu.Lock()
			if held < 0 {
				held = len(w.parkedFor)
			}
			w.mu.Unlock()
		case "parked":
			close(parked)
		}
		return nil
	})
	w.settle(work("r1"), 1)
	if held != 1 {
		t.Errorf("%d pairs were parked while the save hung", held)
	}
	if g := mustStored(w); !w.accepted(g) || w.refreshed != 1 {
		t.Errorf("accepted %v after %d rotations", w.accepted(g), w.refreshed)
	}
	if len(w.parkedFor) != 0 {
		t.Error("the parked pair is left behind")
	}
}
