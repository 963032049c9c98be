package guard_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/schema"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rules = guard.Rules{}.WithDefaults()
)

// given is a verdict that was first given at a time, and again half a minute later.
func given(at time.Time) grant.Verdict { return grant.Verdict{At: at, Again: at.Add(30 * time.Second)} }

// feed applies tallies a second apart and returns the last change.
func feed(s guard.State, at time.Time, tallies ...guard.Tally) (guard.State, guard.Change, time.Time) {
	var change guard.Change
	for _, t := range tallies {
		at = at.Add(time.Second)
		s, change = s.Next(t, "a", at, rules)
	}
	return s, change, at
}

func TestOutageOpensAndOneSuccessCloses(t *testing.T) {
	_, change, _ := feed(guard.State{}, noon, guard.Tally{OK: 100}, guard.Tally{Failed: 9})
	if change != "" {
		t.Fatal("nine failures among a hundred successes open the breaker")
	}
	s, change, at := feed(guard.State{}, noon, guard.Tally{Failed: 9}, guard.Tally{Failed: 1})
	if change != guard.Degraded || s.Outage.Reason != guard.ReasonOutage {
		t.Fatalf("ten failures in a row: %s %+v", change, s.Outage)
	}
	// Answers that were under way when it opened.
	if s, change = s.Next(guard.Tally{OK: 1, Failed: 3}, "a", at, rules); change != "" || s.Outage == nil {
		t.Fatalf("an answer from before the outage: %s", change)
	}
	until := s.Outage.Until
	s, change = s.Next(guard.Tally{Failed: 1}, "a", until, rules)
	if change != guard.Extended || !s.Outage.Until.After(until.Add(rules.OpenMin)) {
		t.Fatalf("a failed try: %s until %v after %v", change, s.Outage.Until, until)
	}
	for range 20 {
		s, _ = s.Next(guard.Tally{Failed: 1}, "a", s.Outage.Until, rules)
	}
	if wait := s.Outage.Until.Sub(until); wait > 21*rules.OpenMax {
		t.Errorf("waits grow without bound: %v", wait)
	}
	if s, change = s.Next(guard.Tally{OK: 1}, "a", s.Outage.Until, rules); change != guard.Recovered || s.Outage != nil {
		t.Errorf("a try that worked: %s", change)
	}
}

func TestARefusedUserIsNoOutage(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{Failed: 10})
	if _, change := s.Next(guard.Tally{Dead: 1}, "a", at.Add(rules.OpenMin), rules); change != guard.Recovered {
		t.Errorf("a provider that answers is back: %q", change)
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	s, change, _ := feed(guard.State{}, noon, guard.Tally{Config: 10})
	if change != guard.Degraded || s.Outage.Reason != guard.ReasonConfig {
		t.Fatalf("%s %+v", change, s.Outage)
	}
	// New settings are tried at once.
	s, _ = s.Next(guard.Tally{}, "b", noon.Add(2*time.Second), rules)
	if s.Outage == nil || s.Outage.Until.After(noon.Add(2*time.Second)) || !s.ProvenAt.IsZero() {
		t.Errorf("after new settings %+v", s)
	}
}

func TestMassFailureHoldsVerdicts(t *testing.T) {
	s, change, at := feed(guard.State{}, noon, guard.Tally{OK: 1000}, guard.Tally{Dead: 500})
	if change != "" || s.Hold(given(noon), at, rules) != "" {
		t.Fatal("a third of the users gone trips the guard")
	}
	s, change, at = feed(s, at, guard.Tally{Dead: 600})
	if change != guard.Degraded || s.Outage.Reason != guard.ReasonMassFailure {
		t.Fatalf("most users gone: %s %+v", change, s.Outage)
	}
	if s.Hold(given(noon), at, rules) != guard.ReasonMassFailure {
		t.Error("a verdict is believed while most users are refused")
	}
	if s, change = s.Next(guard.Tally{Dead: 1}, "a", s.Outage.Until, rules); change != guard.Extended {
		t.Errorf("still refused: %s", change)
	}
	if s, change = s.Next(guard.Tally{OK: 1}, "a", s.Outage.Until, rules); change != guard.Recovered {
		t.Errorf("back again: %s", change)
	}
	// A verdict of that time is believed once others are renewed.
	if s, _, at = feed(s, at, guard.Tally{OK: 2000}); s.Hold(given(noon), at, rules) != "" {
		t.Error("a verdict is held though most users are renewed again")
	}
}

func TestUnprovenSettingsHoldVerdicts(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{Dead: 1})
	if got := s.Hold(given(noon), at, rules); got != schema.ReasonUnproven {
		t.Errorf("a refusal under settings that never worked is held for %q", got)
	}
	if s.Hold(given(noon), noon.Add(rules.Hold), rules) != "" {
		t.Error("it is held back for ever")
	}
	s, _, at = feed(s, at, guard.Tally{OK: 1})
	if s.Hold(given(noon), at, rules) != "" {
		t.Error("a refusal under proven settings is not believed")
	}
	if s, _ = s.Next(guard.Tally{}, "b", at, rules); s.Hold(given(noon), at, rules) == "" {
		t.Error("new settings are taken as proven")
	}
}

func TestOldRefusalsAreForgotten(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{Dead: 9})
	if _, change := s.Next(guard.Tally{Dead: 1}, "a", at.Add(rules.Window+time.Second), rules); change != "" {
		t.Errorf("refusals of different windows are added up: %s", change)
	}
}

// In ten minutes of good answers half a minute of nothing but refusals is a small share. Each user refused in it would be
// signed out by the time the window notices.
func TestVerdictsOfABadMomentAreHeld(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{OK: 3000})
	first := at.Add(3 * time.Second)
	s, change, at := feed(s, first.Add(-time.Second), guard.Tally{Dead: 4}, guard.Tally{Dead: 4, Again: 1}, guard.Tally{Dead: 4, Again: 2})
	if change != "" {
		t.Fatalf("a dozen refusals among thousands: %s", change)
	}
	s, _, at = feed(s, at.Add(30*time.Second), guard.Tally{OK: 1})
	if got := s.Hold(given(first.Add(6*time.Second)), at, rules); got != "" {
		t.Errorf("a user refused when all was well again is held: %s", got)
	}
	if s.Hold(given(first), at, rules) != guard.ReasonMassFailure {
		t.Fatal("a verdict given while everybody was refused is believed")
	}
	// Asking again says nothing new; others who are renewed do.
	s, _, at = feed(s, at, guard.Tally{Again: 50})
	if s.Hold(given(first), at, rules) == "" {
		t.Error("asking again made the verdict true")
	}
	v := given(first)
	v.Again = at.Add(3 * time.Second)
	s, _, at = feed(s, v.Again, guard.Tally{OK: 13})
	if got := s.Hold(v, at, rules); got != "" {
		t.Errorf("most users are renewed since, and the verdict is held: %s", got)
	}
}

// Users wait for their last refusal while all is well again, and get it when the next bad moment begins.
func TestVerdictsConfirmedInABadMomentAreHeld(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{Dead: 3, OK: 100})
	v := grant.Verdict{At: noon}
	s, _, at = feed(s, at.Add(30*time.Second), guard.Tally{OK: 100}, guard.Tally{OK: 100})
	v.Again = at.Add(3 * time.Second)
	s, _, at = feed(s, v.Again, guard.Tally{Again: 8}, guard.Tally{Again: 8})
	if s.Hold(v, at, rules) != guard.ReasonMassFailure {
		t.Error("a verdict confirmed while everybody is refused is believed")
	}
	s, _, at = feed(s, at, guard.Tally{OK: 20})
	if got := s.Hold(v, at, rules); got != "" {
		t.Errorf("most are renewed, and the verdict is held: %s", got)
	}
}

// Where few users are, most of them are fewer than the guard counts; that nobody was renewed since says as much.
func TestVerdictsWithoutAWitnessAreHeld(t *testing.T) {
	s, _, at := feed(guard.State{}, noon, guard.Tally{OK: 1}, guard.Tally{Dead: 1}, guard.Tally{Dead: 2, Again: 1}, guard.Tally{Again: 3})
	v := given(noon.Add(2 * time.Second))
	if s.Hold(v, at.Add(40*time.Second), rules) != schema.ReasonNobodyRenewed {
		t.Error("a verdict is believed though nobody was renewed since")
	}
	if got := s.Hold(v, v.At.Add(rules.Alone), rules); got != "" {
		t.Errorf("the only user who comes is held for ever: %s", got)
	}
	if s, _, at = feed(s, at, guard.Tally{OK: 1}); s.Hold(v, at, rules) != "" {
		t.Error("somebody is renewed again, and the verdict is held")
	}
}
