package refresh_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/schema"
)

// With its own clock a profile is synced between renewals, without presenting a token. The renewals
// still come in their time.
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
		s := data[schema.Synced](t, w.last(schema.UserSynced))
		if len(s.Changed) == 0 || s.Refreshed != (w.refreshed == 1) {
			t.Errorf("%+v after %d presentations", s, w.refreshed)
		}
	}
	if after := w.now().Sub(began); after < 50*time.Minute || after > time.Hour {
		t.Errorf("the tokens of an hour were renewed after %v", after)
	}
}

// Subscribers see what is mapped of a profile. The provider's own JSON is stored, and shown only
// where the settings say so.
func TestEventsShowNoRawProfile(t *testing.T) {
	w := newWorld(t)
	w.profile.Raw = json.RawMessage(`{"sub":"u17","secret_note":"x"}`)
	w.login("a", 10*time.Second)
	w.settle(work("r1"), 1)
	e, ok := w.outcome("r1")
	if !ok || !strings.Contains(string(e.Data), "jane@example.com") ||
		strings.Contains(string(e.Data), "secret_note") {
		t.Errorf("r1 has %s", e.Data)
	}
	if p := mustStored(w).Profile; !strings.Contains(string(p), "secret_note") {
		t.Errorf("stored is %s", p)
	}
}
