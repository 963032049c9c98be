package refresh_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
)

// backup copies the store.
func (w *world) backup() []grant.ListEntry {
	w.t.Helper()
	all, _, err := w.store.List(context.Background(), "", 1000)
	if err != nil {
		w.t.Fatal(err)
	}
	return all
}

// restore puts a store with what was backed up in place of the one there is.
func (w *world) restore(backup []grant.ListEntry) {
	w.t.Helper()
	s := storetest.NewMemory(w.now)
	for _, l := range backup {
		l.Revision = 0
		if _, err := s.Save(context.Background(), l.Grant); err != nil {
			w.t.Fatal(err)
		}
	}
	w.store = s
}

// restored is a world whose store was backed up before the last renewal, and restored after it.
func restored(t *testing.T) *world {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	backup := w.backup()
	w.settle(work("r0"), 1)
	w.restore(backup)
	return w
}

// checkSuspended: the token was kept from the provider, which was said, and the next login ends it.
func (w *world) checkSuspended(version int64) {
	w.t.Helper()
	if w.reuse != 0 || w.refreshed != 1 {
		w.t.Errorf("%d reuses, %d rotations", w.reuse, w.refreshed)
	}
	d := data[schema.RefreshFailed](w.t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonSuperseded || d.NextAttemptAt != nil || d.Version <= version {
		w.t.Errorf("told %+v, published before was version %d", d, version)
	}
	if g := mustStored(w); !g.IsSuperseded() || g.Version != d.Version || g.Pair.Refresh.IsZero() {
		w.t.Errorf("stored %s at version %d, %s", g.Status, g.Version, g.LastError)
	}
	if _, armed := w.timers[key]; armed {
		w.t.Error("a grant that waits for a login has a timer")
	}
	w.settle(work("r9"), 1)
	again := data[schema.RefreshFailed](w.t, w.last(schema.UserRefreshFailed))
	if again.Reason != schema.ReasonSuperseded || again.Cause.ID != "r9" {
		w.t.Errorf("a request is answered %+v", again)
	}
	w.advance(time.Second)
	w.login("b", 10*time.Second)
	w.settle(work("login-b"), 1)
	s := data[schema.Synced](w.t, w.last(schema.UserSynced))
	if !s.Refreshed || !s.Recovered || s.Version <= d.Version {
		w.t.Errorf("after the login %+v", s)
	}
	if !w.accepted(mustStored(w)) {
		w.t.Error("the pair stored after the login is not the provider's")
	}
}

func TestSupersededTokenIsNotPresented(t *testing.T) {
	repair := grant.Work{Cause: schema.Cause{ID: "repair", Type: schema.CauseRepair, Time: start}}
	for name, wake := range map[string]func(w *world){
		"timer":   func(w *world) { w.fire() },
		"request": func(w *world) { w.settle(work("r1"), 1) },
		"repair":  func(w *world) { w.settle(repair, 1) },
		"again":   func(w *world) { w.settle(w.timers[key].work, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			w := restored(t)
			version := w.published.Version
			wake(w)
			delete(w.timers, key)
			w.checkSuspended(version)
		})
	}
}

// A profile that is synced with the access token of the backup must not hide that its refresh token
// is superseded.
func TestSupersededTokenIsSeenBeforeASync(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	backup := w.backup()
	w.advance(80 * time.Second)
	w.settle(work("r0"), 1)
	w.clock = start
	w.restore(backup)
	version := w.published.Version
	delete(w.timers, key) // as a wake does
	w.settle(work("r1"), 1)
	w.checkSuspended(version)
}

// Where the token is the same in all states, as with providers that do not rotate, a restored
// record goes on; its outcomes are newer than those before.
func TestRestoredRecordWithTheSameTokenGoesOn(t *testing.T) {
	w := newWorld(t)
	w.login("a", 90*time.Second)
	backup := w.backup()
	w.settle(work("r0"), 1) // stores the profile
	w.restore(backup)
	before := data[schema.Synced](t, w.last(schema.UserSynced)).Version
	w.settle(work("r1"), 1)
	s := data[schema.Synced](t, w.last(schema.UserSynced))
	if s.Version <= before || s.Version != mustStored(w).Version {
		t.Errorf("version %d after %d, stored %d", s.Version, before, mustStored(w).Version)
	}
	w.fire()
	if s := data[schema.Synced](t, w.last(schema.UserSynced)); !s.Refreshed || w.reuse != 0 {
		t.Errorf("%+v, %d reuses", s, w.reuse)
	}
}

// A provider that does not rotate: nothing is ever superseded.
func TestUnrotatedTokenGoesOnAfterARestore(t *testing.T) {
	w := newWorld(t)
	token := w.login("a", 10*time.Second)
	backup := w.backup()
	g := mustStored(w)
	g.Version += 4
	w.published = g.Mark()
	w.restore(backup)
	w.settle(work("r1"), 1)
	s := data[schema.Synced](t, w.last(schema.UserSynced))
	if !s.Refreshed || s.Version <= g.Version || w.families[token].previous != token {
		t.Errorf("%+v", s)
	}
}

// The store goes back while a renewal is under way, at any point: no token is presented twice, and
// the pair that is at hand is not lost.
func TestStoreRestoredAtEachStep(t *testing.T) {
	for _, by := range []schema.Type{schema.UserRefreshDue, schema.CauseTimer} {
		for _, since := range []string{"this renewal", "the one before"} {
			t.Run(string(by)+" backed up before "+since, func(t *testing.T) {
				atEachN(t, func(t *testing.T, w *world, n int, strike func(func() error)) {
					backup := w.backup()
					w.settle(work("r0"), 1)
					if since == "this renewal" {
						backup = w.backup()
					}
					w.advance(90 * time.Second)
					r1 := work("r1")
					if r1.Cause.Type = by; by == schema.CauseTimer {
						r1.Mark = new(mustStored(w)).Mark()
						n += 2 // it claims without a load
					}
					strike(func() error { w.restore(backup); return nil })
					w.settle(r1, 1)
					w.setAt(func(string) error { return nil })
					w.checkRestoredAt(n)
				})
			})
		}
	}
}

// checkRestoredAt holds what is left after a store was restored in the midst of r1.
func (w *world) checkRestoredAt(n int) {
	w.t.Helper()
	w.checkAnswered("r1")
	g := mustStored(w)
	if n > 3 && n < 7 && !w.accepted(g) {
		w.t.Error("the pair at hand was not saved")
	}
	if !g.IsSuperseded() && !w.accepted(g) {
		w.fire() // restored after its last save: the timer finds out
		g = mustStored(w)
	}
	if w.reuse != 0 || !g.IsSuperseded() && !w.accepted(g) {
		w.t.Errorf("the grant is %s with a token that the provider does not take, %d reuses",
			g.Status, w.reuse)
	}
}

// The store dies with a pair parked, and is restored from a backup of an earlier token: the parked
// pair is the newest.
func TestParkedPairOutlivesItsStore(t *testing.T) {
	for _, age := range []string{"of the parent", "older than that"} {
		t.Run(age, func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 10*time.Second)
			backup := w.backup()
			w.settle(work("r0"), 1)
			if age == "of the parent" {
				backup = w.backup()
			}
			w.advance(90 * time.Second)
			ctx, kill := context.WithCancel(context.Background())
			defer kill()
			w.setAt(func(effect string) error {
				switch effect {
				case "save":
					return errors.New("the disk is gone")
				case "parked":
					kill()
				}
				return nil
			})
			if err := w.deliver(ctx, work("r1"), 1); err == nil || len(w.parkedFor) != 1 {
				t.Fatalf("%v, %d parked", err, len(w.parkedFor))
			}
			w.setAt(func(string) error { return nil })
			w.restore(backup)
			w.settle(work("r1"), 2)
			g := mustStored(w)
			if !w.accepted(g) || w.reuse != 0 || w.refreshed != 2 || len(w.parkedFor) != 0 {
				t.Errorf("accepted %v, %d reuses, %d rotations, %d parked",
					w.accepted(g), w.reuse, w.refreshed, len(w.parkedFor))
			}
			w.checkAnswered("r1")
		})
	}
}

// A parked pair that was applied long ago, back with an older stream: the store's pair stays.
func TestOldParkedPairIsHarmless(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	sealed, err := grant.SealPair(plainCipher{}, grant.PurposePark, key, 1,
		grant.Pair{Refresh: secret.New("spent"), Parent: "long ago"})
	if err != nil {
		t.Fatal(err)
	}
	w.parkedFor[key] = grant.Parcel{Version: mustStored(w).Version, Sealed: sealed}
	w.settle(work("r1"), 2)
	w.fire()
	if g := mustStored(w); !w.accepted(g) || w.reuse != 0 || w.refreshed != 2 {
		t.Errorf("accepted %v, %d reuses, %d rotations", w.accepted(g), w.reuse, w.refreshed)
	}
}

// A user who signed in after the backup: the timer finds nothing, and says so once. An erased one's
// says nothing.
func TestGrantThatIsGoneIsTold(t *testing.T) {
	w := newWorld(t)
	empty := w.backup()
	w.login("a", 10*time.Second)
	w.settle(work("r0"), 1)
	w.restore(empty)
	before := w.published.Version
	w.fire()
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonUnknownGrant || d.Version <= before {
		t.Errorf("%+v", d)
	}
	told := len(w.outcomes)
	w.settle(grant.Work{
		Cause: schema.Cause{ID: "timer", Type: schema.CauseTimer},
		Mark:  grant.Mark{Version: 1, Token: "t"},
	}, 1)
	if len(w.outcomes) != told {
		t.Errorf("told again: %v", w.outcomes[told:])
	}
}

// An operator may go on with what is stored.
func TestAcceptedGrantIsPresented(t *testing.T) {
	w := restored(t)
	w.fire()
	g := mustStored(w).Accepted(grant.Turn{Nonce: "operator", Now: w.now(), Policy: &policy})
	if _, err := w.store.Save(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	w.settle(work("accepted"), 1)
	if w.reuse != 1 || mustStored(w).Status != grant.Live {
		t.Errorf("%d presentations of a spent token, %s", w.reuse, mustStored(w).Status)
	}
}

// Timers know what they were made from: the streams are not asked.
func TestTimersLookAtNothing(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.settle(work("r0"), 1)
	w.looks = 0
	for range 5 {
		w.fire()
	}
	if w.looks != 0 || w.refreshed != 6 {
		t.Errorf("%d looks in %d renewals", w.looks, w.refreshed)
	}
}

// A token that may have been rotated is not presented as long as the pair which it was rotated into
// is parked and cannot be opened: it may be spent.
func TestNothingIsPresentedOverAParkedPairThatDoesNotOpen(t *testing.T) {
	for _, ahead := range []int64{0, 1} { // of the record: found under the claim, or before it
		w := newWorld(t)
		token := w.login("a", 10*time.Second)
		g := mustStored(w).Doubted(w.now())
		w.save(g)
		w.parkedFor[key] = grant.Parcel{
			Version: g.Version + ahead,
			Parent:  g.Fingerprint(),
			Sealed:  []byte("of another keyring"),
		}
		if err := w.deliver(t.Context(), work("r1"), 1); err != nil {
			t.Fatalf("it holds a place: %v", err)
		}
		if w.refreshed != 0 || w.reuse != 0 || mustStored(w).Pair.Refresh.Reveal() != token ||
			mustStored(w).Claim != nil {
			t.Errorf("%d ahead: presented %d times", ahead, w.refreshed)
		}
		if _, armed := w.timers[key]; !armed || w.parkedFor[key].Version == 0 {
			t.Errorf("%d ahead: the pair is gone, or nobody will look again", ahead)
		}
	}
}
