package refresh_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// readMeanwhile has a reader of tokens write the record down right after it was claimed.
func (w *world) readMeanwhile() {
	g := mustStored(w)
	w.save(g.Noted("reader", w.now()))
}

// A claim under which nothing was presented is given back whoever else writes the record.
func TestAClaimIsGivenBackBesideAReader(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.settle(work("r0"), 1)
	w.advance(95 * time.Second)
	claims := 0
	w.setAt(func(effect string) error {
		switch effect {
		case "claim":
			g := mustStored(w) // another worker was faster
			g.Pair.ExpiresAt, g.RefreshedAt = w.now().Add(time.Hour), w.now()
			g.NextDueAt = w.now().Add(time.Minute)
			w.save(g)
		case "claimed":
			claims++
			w.readMeanwhile()
		}
		return nil
	})
	spent := w.refreshed
	w.settle(work("r1"), 1)
	w.checkAnswered("r1")
	if g := mustStored(w); claims != 1 || g.Claim != nil || w.refreshed != spent {
		t.Errorf("claimed %d times, claim %+v, presented %d times more", claims, g.Claim,
			w.refreshed-spent)
	}
}

// What the claim of before said of the token is written down all the same.
func TestAClaimGivenBackBesideAReaderKeepsTheDoubt(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	dead := grant.ClaimRequest{Nonce: "dead", For: time.Second, Presented: true}
	if _, _, err := w.store.Claim(t.Context(), key, dead); err != nil {
		t.Fatal(err)
	}
	w.advance(2 * time.Second)
	w.parkedFor[key] = grant.Parcel{Version: 1, Parent: "x", Sealed: []byte("of a lost key")}
	w.setAt(func(effect string) error {
		if effect == "claimed" {
			w.readMeanwhile()
		}
		return nil
	})
	w.settle(work("r1"), 1) // it waits for a worker that has the key
	g := mustStored(w)
	if g.Claim != nil || g.Doubt == nil || g.Doubt.Fingerprint != g.Fingerprint() ||
		w.refreshed != 0 {
		t.Errorf("claim %+v, doubt %+v", g.Claim, g.Doubt)
	}
}
