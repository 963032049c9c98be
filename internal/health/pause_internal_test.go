package health

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// An operator's pause stops every call, those for new logins too, and outlives the breaker, other
// settings and every worker.
func TestAnOperatorsPauseOutlivesTheBreaker(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	s.fail(a)
	pause := Pause{By: "jo", Note: "they migrate", Since: s.now()}
	if err := PauseBy(t.Context(), s.bucket, "p", pause); err != nil {
		t.Fatal(err)
	}
	a.Report(nil, false) // a call that was under way: the breaker closes
	s.advance(a.Rules.OpenMin)
	a.round(t.Context())
	b := s.worker(s.bucket)
	b.Settings = "b"
	b.round(t.Context())
	newer := s.now().Add(time.Hour)
	// a pause without an end is renewed, so that losing the record ends it
	for range 3 * pauseFor / time.Minute {
		left := s.brake.until.Sub(s.now())
		if b.Wait(newer) == 0 || b.WaitToPresent(newer, false) == 0 ||
			left < pauseFor-time.Minute || left > 2*pauseFor {
			t.Errorf("waits %v, paused for %v", b.Wait(newer), left)
		}
		s.advance(time.Minute)
		b.round(t.Context())
	}
	newer = s.now().Add(time.Hour)
	if b.Wait(newer) > longestTurn {
		t.Errorf("work in hand is put off by %v", b.Wait(newer))
	}
	if err := ResumeBy(t.Context(), s.bucket, "p", "kim", s.now()); err != nil {
		t.Fatal(err)
	}
	b.round(t.Context())
	if b.Wait(newer) != 0 || s.brake.until.After(s.now()) || b.State().WakeAt.IsZero() {
		t.Errorf("resumed: waits %v, paused until %v", b.Wait(newer), s.brake.until)
	}
	if err := ResumeBy(t.Context(), s.bucket, "p", "kim", s.now()); !errors.Is(err, ErrNotPaused) {
		t.Errorf("nothing to resume: %v", err)
	}
}

// A pause with an end is over then, and another one takes its place.
func TestAPauseEndsInItsTime(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	for _, lasts := range []time.Duration{time.Minute, time.Hour} {
		if err := PauseBy(t.Context(), s.bucket, "p", Pause{
			By:    "jo",
			Since: s.now(),
			Until: s.now().Add(lasts),
		}); err != nil {
			t.Fatal(err)
		}
		a.round(t.Context())
		s.advance(30 * time.Second)
	}
	s.advance(time.Minute)
	a.round(t.Context())
	if a.Wait(time.Time{}) == 0 || s.brake.told() != "degraded recovered degraded" {
		t.Errorf("the second pause: waits %v, told %s", a.Wait(time.Time{}), s.brake.told())
	}
	s.advance(time.Hour)
	a.round(t.Context())
	if a.Wait(time.Time{}) != 0 || s.brake.told() != "degraded recovered degraded recovered" {
		t.Errorf("after its end: waits %v, told %s", a.Wait(time.Time{}), s.brake.told())
	}
}

// An operator who knows that it is over need not wait for the next try of the breaker.
func TestResumeTriesAtOnce(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	s.provenAndRefused(a)
	if a.WaitToPresent(time.Time{}, true) < time.Second {
		t.Fatal("nobody waits")
	}
	if err := ResumeBy(t.Context(), s.bucket, "p", "kim", s.now()); err != nil {
		t.Fatal(err)
	}
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) != 0 || a.State().Doubt == nil {
		t.Error("want one try at once, and the doubt to last until its answer")
	}
}

// provenAndRefused makes a provider of it that answers everybody in unknown words.
func (s *site) provenAndRefused(g *Guard) {
	g.Report(nil, false)
	g.round(s.t.Context())
	s.advance(2 * g.Rules.Window)
	for range few {
		g.Report(&grant.Fault{Class: grant.Unknown, Op: "refresh", Status: 400}, false)
	}
	g.round(s.t.Context())
	s.advance(time.Minute)
	g.Report(&grant.Fault{Class: grant.Unknown, Op: "refresh", Status: 400}, true)
	g.round(s.t.Context())
}

// One worker of all wakes the renewals that waited, once; if it dies another worker does.
func TestThoseWhoWaitedAreWokenOnce(t *testing.T) {
	s := newSite(t)
	var woken []time.Time
	died := errors.New("killed")
	waker := func() *Guard {
		g := s.worker(s.bucket)
		g.Wake = func(_ context.Context, _ string, since time.Time) (int, error) {
			woken = append(woken, since)
			return 1, died
		}
		return g
	}
	a, b := waker(), waker()
	s.provenAndRefused(a)
	s.advance(time.Hour)
	over := s.now()
	a.Report(nil, false)
	a.round(t.Context())
	b.round(t.Context())
	if err := a.wake(t.Context()); !errors.Is(err, died) {
		t.Fatal(err)
	}
	died = nil
	wakes := func(g *Guard, want int) {
		t.Helper()
		if err := g.wake(t.Context()); err != nil || len(woken) != want {
			t.Errorf("%v; woken %d times, want %d", err, len(woken), want)
		}
		g.round(t.Context())
	}
	wakes(b, 1) // a has its time for it
	s.advance(wakeFor)
	wakes(b, 2)
	wakes(a, 2)
	wakes(b, 2)
	for i, settings := range []string{"b", "a", "b"} { // two workers disagree
		a.Settings = settings
		a.round(t.Context())
		wakes(a, 2+i/2)
		s.advance(wakeEvery / 2)
	}
	if !woken[1].Equal(over) {
		t.Errorf("woken since %v, want %v", woken[1], over)
	}
}

// The end of an operator's pause has those who waited tried at once, however lately they were.
func TestEndOfPauseWakesAtOnce(t *testing.T) {
	s := newSite(t)
	woken := 0
	g := s.worker(s.bucket)
	g.Wake = func(context.Context, string, time.Time) (int, error) { woken++; return 1, nil }
	end := map[string]func(){
		"resumed": func() {
			if err := ResumeBy(t.Context(), s.bucket, "p", "kim", s.now()); err != nil {
				t.Fatal(err)
			}
		},
		"ran out": func() { s.advance(15 * time.Second) },
	}
	for range 3 {
		for name, end := range end {
			before := woken
			p := Pause{Since: s.now(), Until: s.now().Add(15 * time.Second), By: "kim"}
			if err := PauseBy(t.Context(), s.bucket, "p", p); err != nil {
				t.Fatal(err)
			}
			g.round(t.Context())
			end()
			g.round(t.Context())
			if err := g.wake(t.Context()); err != nil || woken != before+1 {
				t.Errorf("%s: %v; woken %d times, want once", name, err, woken-before)
			}
		}
	}
}

// A worker that wakes many keeps the others from it as long as it lives, and has no say any more
// once an operator has decided that all are woken again.
func TestLongWakingIsHeld(t *testing.T) {
	s := newSite(t)
	a, b := s.worker(s.bucket), s.worker(s.bucket)
	s.provenAndRefused(a)
	s.advance(time.Hour)
	a.Report(nil, false)
	a.round(t.Context())
	at := a.State().WakeAt
	until, err := a.claimWake(t.Context(), at)
	if err != nil || until.IsZero() {
		t.Fatal(until, err)
	}
	overtaken := make(chan bool, 1)
	tick, held := make(chan time.Time), make(chan claims)
	go func() {
		held <- a.holdWake(t.Context(), func() { overtaken <- true }, tick, claims{until})
	}()
	for range 4 {
		s.advance(wakeFor / 3)
		tick <- s.now()
	}
	tick <- s.now() // the fourth is stored
	if other, err := b.claimWake(t.Context(), at); err != nil || !other.IsZero() {
		t.Errorf("another worker wakes the same until %v, %v", other, err)
	}
	p := Pause{Since: s.now(), By: "kim"}
	if err := PauseBy(t.Context(), s.bucket, "p", p); err != nil {
		t.Fatal(err)
	}
	if err := ResumeBy(t.Context(), s.bucket, "p", "kim", s.now()); err != nil {
		t.Fatal(err)
	}
	tick <- s.now()
	mine := <-held
	<-overtaken
	b.round(t.Context())
	after := b.State()
	if got := after.woken(at, s.now(), mine); !got.WakeAt.Equal(after.WakeAt) ||
		!got.WakeUntil.IsZero() {
		t.Errorf("the end of the first waking has them woken at %v, not before %v",
			got.WakeAt, got.WakeUntil)
	}
}

// Under settings with which no user was renewed yet, tokens are shown one after the other.
func TestUntriedSettingsShowOneTokenAtATime(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) != 0 || a.WaitToPresent(time.Time{}, true) == 0 {
		t.Error("want one, and no second one beside it")
	}
	if a.Wait(time.Time{}) != 0 {
		t.Error("a profile waits")
	}
	s.advance(firstPace)
	if a.WaitToPresent(time.Time{}, true) == 0 {
		t.Error("the next one does not wait for what becomes of the first")
	}
	a.Report(&grant.Fault{Class: grant.Ambiguous, Op: "refresh"}, false)
	if a.WaitToPresent(time.Time{}, true) == 0 {
		t.Error("the next one does not wait until the other workers know of it")
	}
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, true) != 0 {
		t.Error("the next one waits on")
	}
	s.advance(unheard)
	if a.WaitToPresent(time.Time{}, true) != 0 {
		t.Error("one that is not heard of holds the others for ever")
	}
	a.Report(nil, false)
	a.round(t.Context())
	first, second := a.WaitToPresent(time.Time{}, true), a.WaitToPresent(time.Time{}, true)
	if first != 0 || second != 0 {
		t.Error("somebody was renewed, and others wait")
	}
}

// A worker presents no token before it has looked at the provider's record, which may say that the
// settings are new: all its messages come at once when it starts. A record that it cannot read
// keeps no token back.
func TestNothingIsPresentedBeforeTheRecordIsKnown(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	if a.WaitToPresent(time.Time{}, false) == 0 {
		t.Error("a token is presented before the record was looked at")
	}
	a.round(t.Context())
	if a.WaitToPresent(time.Time{}, false) != 0 {
		t.Error("the record is known, and the first token waits")
	}
	if _, err := s.bucket.PutString(t.Context(), "p", "damaged"); err != nil {
		t.Fatal(err)
	}
	b := s.worker(s.bucket)
	b.round(t.Context())
	if b.WaitToPresent(time.Time{}, false) != 0 {
		t.Error("the record cannot be read, and the first token waits")
	}
}

// While a provider refuses everybody in unknown words, a login that came since is a better probe
// than the users who were there before.
func TestANewerLoginTriesSooner(t *testing.T) {
	s := newSite(t)
	a := s.worker(s.bucket)
	s.provenAndRefused(a)
	for range 12 { // the tries become rare
		s.advance(a.State().Doubt.Until.Sub(s.now()))
		a.Report(&grant.Fault{Class: grant.Unknown, Op: "refresh", Status: 400}, true)
		a.round(t.Context())
	}
	s.advance(2 * a.Rules.Release)
	older, newer := time.Time{}, s.now()
	if a.WaitToPresent(older, true) < longestTurn {
		t.Errorf("who was refused before waits %v", a.WaitToPresent(older, true))
	}
	if a.WaitToPresent(newer, false) != 0 || a.WaitToPresent(newer, false) == 0 ||
		a.WaitToPresent(older, false) == 0 {
		t.Error("want one try of a newer login, and no second one beside it")
	}
	s.advance(a.Rules.Release)
	if a.WaitToPresent(older, false) == 0 || a.WaitToPresent(newer, false) != 0 {
		t.Error("the next one waits on")
	}
	s.advance(longestTurn)
	if a.WaitToPresent(older, false) != 0 {
		t.Error("who was never refused waits on")
	}
}
