package guard_test

import (
	"fmt"
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

// said is the type and reason of the newest event; empty if there is none.
func said(s guard.State) string {
	if len(s.Untold) == 0 {
		return ""
	}
	n := s.Untold[len(s.Untold)-1]
	return string(n.Type) + " " + n.Reason
}

const degraded, recovered = "provider.degraded ", "provider.recovered "

// feed applies tallies a second apart.
func feed(s guard.State, at time.Time, tallies ...guard.Tally) (guard.State, time.Time) {
	for _, t := range tallies {
		at = at.Add(time.Second)
		s = s.Next(t, "a", at, rules)
	}
	return s, at
}

// pass lets seconds go by in which nothing happens.
func pass(s guard.State, at time.Time, d time.Duration) (guard.State, time.Time) {
	return feed(s, at, make([]guard.Tally, int(d/time.Second))...)
}

func TestOutageOpensAndOneSuccessCloses(t *testing.T) {
	s, _ := feed(guard.State{}, noon, guard.Tally{OK: 100}, guard.Tally{Failed: 9})
	if said(s) != "" {
		t.Fatal("nine failures among a hundred successes open the breaker")
	}
	s, at := feed(guard.State{}, noon, guard.Tally{Failed: 9}, guard.Tally{Failed: 1})
	if s.Outage == nil || said(s) != degraded+guard.ReasonOutage {
		t.Fatalf("ten failures in a row: %s %+v", said(s), s.Outage)
	}
	// Answers that were under way when it opened.
	if s = s.Next(guard.Tally{OK: 1, Failed: 3}, "a", at, rules); len(s.Untold) != 1 || s.Outage == nil {
		t.Fatalf("an answer from before the outage: %s", said(s))
	}
	until := s.Outage.Until
	s = s.Next(guard.Tally{Failed: 1}, "a", until, rules)
	if len(s.Untold) != 1 || !s.Outage.Until.After(until.Add(rules.OpenMin)) {
		t.Fatalf("a failed try: %s until %v after %v", said(s), s.Outage.Until, until)
	}
	for range 20 {
		s = s.Next(guard.Tally{Failed: 1}, "a", s.Outage.Until, rules)
	}
	if wait := s.Outage.Until.Sub(until); wait > 21*rules.OpenMax {
		t.Errorf("waits grow without bound: %v", wait)
	}
	if s = s.Next(guard.Tally{OK: 1}, "a", s.Outage.Until, rules); s.Outage != nil || said(s) != recovered+guard.ReasonOutage {
		t.Errorf("a try that worked: %s", said(s))
	}
}

func TestARefusedUserIsNoOutage(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{Failed: 10})
	if s = s.Next(guard.Tally{Dead: 1}, "a", at.Add(rules.OpenMin), rules); s.Outage != nil {
		t.Errorf("a provider that answers is back: %s", said(s))
	}
}

// The limit follows from the record and the time alone, so that it does not hang on who wrote the
// record.
func TestTheLimitFollowsFromTheRecord(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1})
	if got := s.Limit(at, 50); got != 50 {
		t.Errorf("in good times %d", got)
	}
	s, at = feed(s, at, guard.Tally{Failed: 50})
	if got := s.Limit(at.Add(time.Hour), 50); got != 1 || !s.PausedUntil(at).Equal(s.Outage.Until) {
		t.Errorf("in an outage %d, paused until %v", got, s.PausedUntil(at))
	}
	until := s.Outage.Until
	s, at = feed(s, until, guard.Tally{OK: 1})
	for i, want := range []int{1, 2, 4, 8, 16, 32, 50, 50} {
		if got := s.Limit(at.Add(time.Duration(i)*time.Second), 50); got != want {
			t.Errorf("%d s after it %d, want %d", i, got, want)
		}
	}
	if got := s.Limit(at.Add(1000*time.Hour), 50); got != 50 {
		t.Errorf("long after it %d", got)
	}
	if !s.PausedUntil(at).IsZero() {
		t.Error("a pause that is over is lifted")
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	s, _ := feed(guard.State{}, noon, guard.Tally{Config: 10})
	if said(s) != degraded+guard.ReasonConfig {
		t.Fatalf("%s", said(s))
	}
	// New settings are tried at once.
	s = s.Next(guard.Tally{}, "b", noon.Add(2*time.Second), rules)
	if s.Doubt != nil || !s.ProvenAt.IsZero() || said(s) != recovered+guard.ReasonConfig {
		t.Errorf("after new settings %+v", s)
	}
	if !s.WakeAt.Equal(noon.Add(2 * time.Second)) {
		t.Errorf("those who failed under the old ones are woken at %v", s.WakeAt)
	}
}

// A refused client may spend the token that it shows, so that few are shown, also where users were
// renewed a second ago: the secret has just been changed at the provider.
func TestWrongSettingsAreNoticedInARow(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 100}, guard.Tally{Config: 19})
	if said(s) != "" {
		t.Errorf("users were renewed a second ago: %s", said(s))
	}
	if s, _ := feed(s, at, guard.Tally{Dead: 1}, guard.Tally{Config: 19}); said(s) != "" {
		t.Errorf("a user was refused meanwhile, so that the client is not: %s", said(s))
	}
	if s, _ := feed(s, at, guard.Tally{Config: 1}); said(s) != degraded+guard.ReasonConfig {
		t.Errorf("twenty in a row: %s", said(s))
	}
	s, at = pass(s, at, rules.Window)
	if s, _ := feed(s, at, guard.Tally{Config: 1}); said(s) != degraded+guard.ReasonConfig {
		t.Errorf("nobody was renewed for long: %s", said(s))
	}
	off := rules
	off.FailShare = 2
	if s = s.Next(guard.Tally{Config: 50}, "a", at, off); s.Doubt != nil {
		t.Errorf("the breaker is switched off: %+v", s)
	}
}

// A provider that refuses our settings still says who a user is: nothing is paused but refreshing,
// one tries again and again, and any answer about a user ends it.
func TestWrongSettingsKeepTokensBackOnly(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1}, guard.Tally{Config: 50})
	if s.Doubt == nil || !s.Doubt.Until.After(at) || s.Limit(at, 50) != 50 || !s.PausedUntil(at).IsZero() {
		t.Fatalf("%+v", s)
	}
	var waits []time.Duration
	for range 5 {
		before := s.Doubt.Until
		s = s.Next(guard.Tally{Config: 1}, "a", before, rules)
		waits = append(waits, s.Doubt.Until.Sub(before)/time.Second)
	}
	if got := fmt.Sprint(waits); got != "[2ns 4ns 4ns 4ns 4ns]" {
		t.Errorf("seconds between tries: %s", got)
	}
	if got := s.Hold(given(noon), noon.Add(100*rules.Hold), rules); got != guard.ReasonConfig {
		t.Errorf("a verdict is held for %q", got)
	}
	if s = s.Next(guard.Tally{Again: 1}, "a", s.Doubt.Until, rules); s.Doubt != nil || s.WakeAt.IsZero() {
		t.Errorf("a refusal of a user takes our settings: %+v", s)
	}
}

// Words that nobody knows are about one user while others are renewed, and about us when nobody is.
// Few tokens are then shown, since a provider may spend each.
func TestUnknownAnswersToEverybodyKeepTokensBack(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 100}, guard.Tally{Unknown: 19})
	if said(s) != "" {
		t.Errorf("somebody was renewed a second ago: %s", said(s))
	}
	if s, _ := feed(s, at, guard.Tally{Unknown: 1}); said(s) != degraded+guard.ReasonUnknown {
		t.Errorf("twenty in a row: %s", said(s))
	}
	if s, _ := feed(s, at, guard.Tally{UnknownAgain: 5}); said(s) != "" {
		t.Errorf("one user who is tried again and again is taken for many: %s", said(s))
	}
	s, at = feed(s, at, guard.Tally{OK: 1})
	s, at = pass(s, at, rules.Window)
	if s, at = feed(s, at, guard.Tally{Unknown: 3}); said(s) != degraded+guard.ReasonUnknown {
		t.Fatalf("three unknown answers, nobody renewed: %s", said(s))
	}
	shown := 0
	for end := at.Add(24 * time.Hour); s.Doubt.Until.Before(end); shown++ {
		s = s.Next(guard.Tally{UnknownAgain: 1}, "a", s.Doubt.Until, rules)
	}
	if shown > 36 {
		t.Errorf("%d tokens are shown in a day", shown)
	}
	if got := s.Hold(given(noon), noon.Add(100*rules.Hold), rules); got != guard.ReasonUnknown {
		t.Errorf("a verdict is held for %q", got)
	}
	s = s.Next(guard.Tally{OK: 1}, "a", s.Doubt.Until, rules)
	if s.Doubt != nil || s.WakeAt.IsZero() {
		t.Errorf("somebody was renewed: %+v", s)
	}
}

// Most users refused in words that nobody knows are a mass failure like any other, also hours later,
// when each of them asks once an hour and the first refusals are forgotten.
func TestMostUsersRefusedInUnknownWordsAreHeld(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1000})
	for range 50 { // of each ten calls, one renews
		s, at = feed(s, at.Add(time.Minute), guard.Tally{OK: 2, Unknown: 18})
	}
	if s.Doubt == nil || said(s) != degraded+guard.ReasonMassFailure {
		t.Errorf("most users are refused: %s", said(s))
	}
	for range 75 {
		s, at = feed(s, at.Add(time.Minute), guard.Tally{OK: 2, UnknownAgain: 18})
	}
	v := grant.Verdict{At: at.Add(-2 * time.Hour), Again: at.Add(-time.Hour), Unsure: true}
	if got := s.Hold(v, at, rules); got != guard.ReasonMassFailure {
		t.Errorf("held for %q", got)
	}
}

// A refusal in words that nobody knows is about the user only if others were renewed after it was
// given again, under the same settings.
func TestAnUnsureVerdictNeedsOthersWhoAreRenewed(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1}, guard.Tally{Unknown: 1})
	v := grant.Verdict{At: noon, Again: noon.Add(time.Hour), Unsure: true}
	s, at = pass(s, at, time.Hour)
	if got := s.Hold(v, at.Add(100*rules.Hold), rules); got != schema.ReasonNobodyRenewed {
		t.Errorf("nobody was renewed since: held for %q", got)
	}
	s, at = feed(s, at.Add(time.Minute), guard.Tally{OK: 1})
	if got := s.Hold(v, at, rules); got != "" {
		t.Errorf("somebody was renewed since: held for %q", got)
	}
	if got, _ := feed(s, at, guard.Tally{Unknown: 40}); got.Hold(v, at, rules) == "" {
		t.Error("most are refused like that since, and it is believed")
	}
	s = s.Next(guard.Tally{}, "b", at, rules)
	s, at = feed(s, at.Add(time.Second), guard.Tally{OK: 1})
	s.Settings = "b"
	if got := s.Hold(v, at, rules); got != schema.ReasonUnproven {
		t.Errorf("it was given under other settings: held for %q", got)
	}
}

func TestUnprovenSettingsHoldVerdicts(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{Dead: 1})
	if got := s.Hold(given(noon), at, rules); got != schema.ReasonUnproven {
		t.Errorf("a refusal under settings that never worked is held for %q", got)
	}
	if s.Hold(given(noon), noon.Add(rules.Hold), rules) != "" {
		t.Error("it is held back for ever")
	}
	s, at = feed(s, at, guard.Tally{OK: 1})
	if s.Hold(given(noon), at, rules) != "" {
		t.Error("a refusal under proven settings is not believed")
	}
	if s = s.Next(guard.Tally{}, "b", at, rules); s.Hold(given(noon), at, rules) == "" {
		t.Error("new settings are taken as proven")
	}
}

func TestOldRefusalsAreForgotten(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{Dead: 9})
	if s = s.Next(guard.Tally{Dead: 1, OK: 1}, "a", at.Add(rules.Window+time.Minute), rules); said(s) != "" {
		t.Errorf("refusals of different windows are added up: %s", said(s))
	}
}

// In ten minutes of good answers half a minute of nothing but refusals is a small share. Each user
// refused in it would be signed out by the time the window notices.
func TestVerdictsOfABadMomentAreHeld(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 3000})
	first := at.Add(3 * time.Second)
	s, at = feed(s, first.Add(-time.Second), guard.Tally{Dead: 4}, guard.Tally{Dead: 4, Again: 1}, guard.Tally{Dead: 4, Again: 2})
	if said(s) != "" {
		t.Fatalf("a dozen refusals among thousands: %s", said(s))
	}
	s, at = feed(s, at.Add(30*time.Second), guard.Tally{OK: 1})
	if got := s.Hold(given(first.Add(6*time.Second)), at, rules); got != "" {
		t.Errorf("a user refused when all was well again is held: %s", got)
	}
	if s.Hold(given(first), at, rules) != guard.ReasonMassFailure {
		t.Fatal("a verdict given while everybody was refused is believed")
	}
	// Asking again says nothing new; others who are renewed do.
	s, at = feed(s, at, guard.Tally{Again: 50})
	if s.Hold(given(first), at, rules) == "" {
		t.Error("asking again made the verdict true")
	}
	v := given(first)
	v.Again = at.Add(3 * time.Second)
	s, at = feed(s, v.Again, guard.Tally{OK: 13})
	if got := s.Hold(v, at, rules); got != "" {
		t.Errorf("most users are renewed since, and the verdict is held: %s", got)
	}
}

// Users wait for their last refusal while all is well again, and get it when the next bad moment
// begins.
func TestVerdictsConfirmedInABadMomentAreHeld(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{Dead: 3, OK: 100})
	v := grant.Verdict{At: noon}
	s, at = feed(s, at.Add(30*time.Second), guard.Tally{OK: 100}, guard.Tally{OK: 100})
	v.Again = at.Add(3 * time.Second)
	s, at = feed(s, v.Again, guard.Tally{Again: 8}, guard.Tally{Again: 8})
	if s.Hold(v, at, rules) != guard.ReasonMassFailure {
		t.Error("a verdict confirmed while everybody is refused is believed")
	}
	s, at = feed(s, at, guard.Tally{OK: 20})
	if got := s.Hold(v, at, rules); got != "" {
		t.Errorf("most are renewed, and the verdict is held: %s", got)
	}
}

// Where few users are, most of them are fewer than the guard counts; that nobody was renewed since
// says as much.
func TestVerdictsWithoutAWitnessAreHeld(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1}, guard.Tally{Dead: 1}, guard.Tally{Dead: 2, Again: 1}, guard.Tally{Again: 3})
	v := given(noon.Add(2 * time.Second))
	if s.Hold(v, at.Add(40*time.Second), rules) != schema.ReasonNobodyRenewed {
		t.Error("a verdict is believed though nobody was renewed since")
	}
	if got := s.Hold(v, v.At.Add(rules.Alone), rules); got != "" {
		t.Errorf("the only user who comes is held for ever: %s", got)
	}
	if s, at = feed(s, at, guard.Tally{OK: 1}); s.Hold(v, at, rules) != "" {
		t.Error("somebody is renewed again, and the verdict is held")
	}
}
