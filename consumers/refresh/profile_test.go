package refresh_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/schema"
)

// With a clock of its own a profile is synced between renewals, without a token being presented, and
// renewals come in their time all the same.
func TestProfilesHaveAClockOfTheirOwn(t *testing.T) {
	w := newWorld(t)
	w.profileEvery = time.Minute
	w.login("a", time.Hour)
	w.settle(work("r0"), 1)
	began, synced := w.now(), 1
	for w.refreshed == 0 {
		before := w.now()
		w.profile.Name = before.String()
		w.fire()
		if wait := w.now().Sub(before); wait > time.Minute {
			t.Fatalf("looked at after %v", wait)
		}
		if synced++; w.told()[schema.UserSynced] != synced {
			t.Fatalf("%d user.synced after %d looks", w.told()[schema.UserSynced], synced)
		}
		if s := data[schema.Synced](t, w.last(schema.UserSynced)); len(s.Changed) == 0 || s.Refreshed != (w.refreshed == 1) {
			t.Errorf("%+v after %d presentations", s, w.refreshed)
		}
	}
	if after := w.now().Sub(began); after < 50*time.Minute || after > time.Hour {
		t.Errorf("the tokens of an hour were renewed after %v", after)
	}
}
