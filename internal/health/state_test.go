package health_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/schema"
)

var (
	noon  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rules = health.Rules{}.WithDefaults()
)

// given is a verdict that was first given at a time, and again half a minute later.
func given(at time.Time) grant.Verdict {
	return grant.Verdict{At: at, Again: at.Add(30 * time.Second)}
}

// said is the type and reason of the newest event; empty without an event.
func said(s health.State) string {
	if len(s.Untold) == 0 {
		return ""
	}
	n := s.Untold[len(s.Untold)-1]
	return string(n.Type) + " " + n.Reason
}

const degraded, recovered = "provider.degraded ", "provider.recovered "

// feed applies tallies a second apart.
func feed(s health.State, at time.Time, tallies ...health.Tally) (health.State, time.Time) {
	for _, t := range tallies {
		at = at.Add(time.Second)
		s = s.Next(t, "a", at, rules)
	}
	return s, at
}

// pass lets seconds go by in which nothing happens.
func pass(s health.State, at time.Time, d time.Duration) (health.State, time.Time) {
	return feed(s, at, make([]health.Tally, int(d/time.Second))...)
}

func TestOutageOpensAndOneSuccessCloses(t *testing.T) {
	s, _ := feed(health.State{}, noon, health.Tally{OK: 100}, health.Tally{Failed: 9})
	if said(s) != "" {
		t.Fatal("nine failures among a hundred successes open the breaker")
	}
	s, at := feed(health.State{}, noon, health.Tally{Failed: 9}, health.Tally{Failed: 1})
	if s.Outage == nil || said(s) != degraded+health.ReasonOutage {
		t.Fatalf("ten failures in a row: %s %+v", said(s), s.Outage)
	}
	// Answers that were under way when it opened.
	if s = s.Next(health.Tally{
		OK:     1,
		Failed: 3,
	}, "a", at, rules); len(s.Untold) != 1 || s.Outage == nil {
		t.Fatalf("an answer from before the outage: %s", said(s))
	}
	until := s.Outage.Until
	s = s.Next(health.Tally{Failed: 1}, "a", until, rules)
	if len(s.Untold) != 1 || !s.Outage.Until.After(until.Add(rules.OpenMin)) {
		t.Fatalf("a failed try: %s until %v after %v", said(s), s.Outage.Until, until)
	}
	for range 20 {
		s = s.Next(health.Tally{Failed: 1}, "a", s.Outage.Until, rules)
	}
	if wait := s.Outage.Until.Sub(until); wait > 21*rules.OpenMax {
		t.Errorf("waits grow without bound: %v", wait)
	}
	if s = s.Next(health.Tally{OK: 1}, "a", s.Outage.Until, rules); s.Outage != nil ||
		said(s) != recovered+health.ReasonOutage {
		t.Errorf("a try that worked: %s", said(s))
	}
}

func TestARefusedUserIsNoOutage(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{Failed: 10})
	if s = s.Next(health.Tally{Dead: 1}, "a", at.Add(rules.OpenMin), rules); s.Outage != nil {
		t.Errorf("a provider that answers is back: %s", said(s))
	}
}

// The limit follows from the record and the time alone. It does not matter which worker wrote the
// record.
func TestTheLimitFollowsFromTheRecord(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1})
	if got := s.Limit(at, 50); got != 50 {
		t.Errorf("in good times %d", got)
	}
	s, at = feed(s, at, health.Tally{Failed: 50})
	if got := s.Limit(at.Add(time.Hour), 50); got != 1 || !s.PausedUntil(at).Equal(s.Outage.Until) {
		t.Errorf("in an outage %d, paused until %v", got, s.PausedUntil(at))
	}
	until := s.Outage.Until
	s, at = feed(s, until, health.Tally{OK: 1})
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
	s, _ := feed(health.State{}, noon, health.Tally{Config: 10})
	if said(s) != degraded+health.ReasonConfig {
		t.Fatalf("%s", said(s))
	}
	// New settings are tried at once.
	s = s.Next(health.Tally{}, "b", noon.Add(2*time.Second), rules)
	if s.Doubt != nil || !s.ProvenAt.IsZero() || said(s) != recovered+health.ReasonConfig {
		t.Errorf("after new settings %+v", s)
	}
	if !s.WakeAt.Equal(noon.Add(2 * time.Second)) {
		t.Errorf("those who failed under the old ones are woken at %v", s.WakeAt)
	}
}

// A refused client may spend the token that it shows, so that few are shown, also where users were
// renewed a second ago: the secret has just been changed at the provider.
func TestWrongSettingsAreNoticedInARow(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 100}, health.Tally{Config: 19})
	if said(s) != "" {
		t.Errorf("users were renewed a second ago: %s", said(s))
	}
	if s, _ := feed(s, at, health.Tally{Dead: 1}, health.Tally{Config: 19}); said(s) != "" {
		t.Errorf("a user was refused meanwhile, so that the client is not: %s", said(s))
	}
	if s, _ := feed(s, at, health.Tally{Config: 1}); said(s) != degraded+health.ReasonConfig {
		t.Errorf("twenty in a row: %s", said(s))
	}
	s, at = pass(s, at, rules.Window)
	if s, _ := feed(s, at, health.Tally{Config: 1}); said(s) != degraded+health.ReasonConfig {
		t.Errorf("no user was renewed for long: %s", said(s))
	}
	off := rules
	off.FailShare = 2
	if s = s.Next(health.Tally{Config: 50}, "a", at, off); s.Doubt != nil {
		t.Errorf("the breaker is switched off: %+v", s)
	}
}

// A provider that refuses our settings still says who a user is: nothing is paused but refreshing,
// one tries again and again, and any answer about a user ends it.
func TestWrongSettingsKeepTokensBackOnly(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1}, health.Tally{Config: 50})
	if s.Doubt == nil || !s.Doubt.Until.After(at) || s.Limit(at, 50) != 50 ||
		!s.PausedUntil(at).IsZero() {
		t.Fatalf("%+v", s)
	}
	var waits []time.Duration
	for range 5 {
		before := s.Doubt.Until
		s = s.Next(health.Tally{Config: 1}, "a", before, rules)
		waits = append(waits, s.Doubt.Until.Sub(before)/time.Second)
	}
	if got := fmt.Sprint(waits); got != "[2ns 4ns 4ns 4ns 4ns]" {
		t.Errorf("seconds between tries: %s", got)
	}
	if got := s.Withhold(given(noon), noon.Add(100*rules.Hold), rules); got != health.ReasonConfig {
		t.Errorf("a verdict is held for %q", got)
	}
	if s = s.Next(health.Tally{Again: 1}, "a", s.Doubt.Until, rules); s.Doubt != nil ||
		s.WakeAt.IsZero() {
		t.Errorf("a refusal of a user takes our settings: %+v", s)
	}
}

// Unknown words are about one user while others are renewed, and about us when no user is. Few
// tokens are then shown, since a provider may spend each.
func TestUnknownAnswersToEverybodyKeepTokensBack(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 100}, health.Tally{Unknown: 19})
	if said(s) != "" {
		t.Errorf("somebody was renewed a second ago: %s", said(s))
	}
	if s, _ := feed(s, at, health.Tally{Unknown: 1}); said(s) != degraded+health.ReasonUnknown {
		t.Errorf("twenty in a row: %s", said(s))
	}
	if s, _ := feed(s, at, health.Tally{UnknownAgain: 5}); said(s) != "" {
		t.Errorf("one user who is tried again and again is taken for many: %s", said(s))
	}
	s, at = feed(s, at, health.Tally{OK: 1})
	s, at = pass(s, at, rules.Window)
	if s, at = feed(s, at, health.Tally{Unknown: 3}); said(s) != degraded+health.ReasonUnknown {
		t.Fatalf("three unknown answers, nobody renewed: %s", said(s))
	}
	shown := 0
	for end := at.Add(24 * time.Hour); s.Doubt.Until.Before(end); shown++ {
		s = s.Next(health.Tally{UnknownAgain: 1}, "a", s.Doubt.Until, rules)
	}
	if shown > 36 {
		t.Errorf("%d tokens are shown in a day", shown)
	}
	if got := s.Withhold(
		given(noon), noon.Add(100*rules.Hold), rules,
	); got != health.ReasonUnknown {
		t.Errorf("a verdict is held for %q", got)
	}
	s = s.Next(health.Tally{OK: 1}, "a", s.Doubt.Until, rules)
	if s.Doubt != nil || s.WakeAt.IsZero() {
		t.Errorf("somebody was renewed: %+v", s)
	}
}

// Most users refused in unknown words are a mass failure like any other, also hours later, when
// each of them asks once an hour and the first refusals are forgotten.
func TestMostUsersRefusedInUnknownWordsAreHeld(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1000})
	for range 50 { // of each ten calls, one renews
		s, at = feed(s, at.Add(time.Minute), health.Tally{OK: 2, Unknown: 18})
	}
	if s.Doubt == nil || said(s) != degraded+health.ReasonMassFailure {
		t.Errorf("most users are refused: %s", said(s))
	}
	for range 75 {
		s, at = feed(s, at.Add(time.Minute), health.Tally{OK: 2, UnknownAgain: 18})
	}
	v := grant.Verdict{At: at.Add(-2 * time.Hour), Again: at.Add(-time.Hour), Unsure: true}
	if got := s.Withhold(v, at, rules); got != health.ReasonMassFailure {
		t.Errorf("held for %q", got)
	}
}

// A refusal in unknown words is about the user only if others were renewed after it was given
// again, under the same settings.
func TestAnUnsureVerdictNeedsOthersWhoAreRenewed(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1}, health.Tally{Unknown: 1})
	v := grant.Verdict{At: noon, Again: noon.Add(time.Hour), Unsure: true}
	s, at = pass(s, at, time.Hour)
	if got := s.Withhold(v, at.Add(100*rules.Hold), rules); got != schema.ReasonNobodyRenewed {
		t.Errorf("no user was renewed since: held for %q", got)
	}
	s, at = feed(s, at.Add(time.Minute), health.Tally{OK: 1})
	if got := s.Withhold(v, at, rules); got != "" {
		t.Errorf("somebody was renewed since: held for %q", got)
	}
	if got, _ := feed(s, at, health.Tally{Unknown: 40}); got.Withhold(v, at, rules) == "" {
		t.Error("most are refused like that since, and it is believed")
	}
	s = s.Next(health.Tally{}, "b", at, rules)
	s, at = feed(s, at.Add(time.Second), health.Tally{OK: 1})
	s.Settings = "b"
	if got := s.Withhold(v, at, rules); got != schema.ReasonUnproven {
		t.Errorf("it was given under other settings: held for %q", got)
	}
}

func TestUnprovenSettingsHoldVerdicts(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{Dead: 1})
	if got := s.Withhold(given(noon), at, rules); got != schema.ReasonUnproven {
		t.Errorf("a refusal under settings that never worked is held for %q", got)
	}
	if s.Withhold(given(noon), noon.Add(rules.Hold), rules) != "" {
		t.Error("it is held back for ever")
	}
	s, at = feed(s, at, health.Tally{OK: 1})
	if s.Withhold(given(noon), at, rules) != "" {
		t.Error("a refusal under proven settings is not believed")
	}
	if s = s.Next(health.Tally{}, "b", at, rules); s.Withhold(given(noon), at, rules) == "" {
		t.Error("new settings are taken as proven")
	}
}

func TestOldRefusalsAreForgotten(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{Dead: 9})
	if s = s.Next(
		health.Tally{Dead: 1, OK: 1}, "a", at.Add(rules.Window+time.Minute), rules,
	); said(s) != "" {
		t.Errorf("refusals of different windows are added up: %s", said(s))
	}
}

// In ten minutes of good answers half a minute of nothing but refusals is a small share. Each user
// refused in it would be signed out by the time the window notices.
func TestVerdictsOfABadMomentAreHeld(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 3000})
	first := at.Add(3 * time.Second)
	s, at = feed(s, first.Add(-time.Second), health.Tally{Dead: 4}, health.Tally{Dead: 4, Again: 1},
		health.Tally{Dead: 4, Again: 2})
	if said(s) != "" {
		t.Fatalf("a dozen refusals among thousands: %s", said(s))
	}
	s, at = feed(s, at.Add(30*time.Second), health.Tally{OK: 1})
	if got := s.Withhold(given(first.Add(6*time.Second)), at, rules); got != "" {
		t.Errorf("a user refused when all was well again is held: %s", got)
	}
	if s.Withhold(given(first), at, rules) != health.ReasonMassFailure {
		t.Fatal("a verdict given while everybody was refused is believed")
	}
	// Asking again says nothing new; others who are renewed do.
	s, at = feed(s, at, health.Tally{Again: 50})
	if s.Withhold(given(first), at, rules) == "" {
		t.Error("asking again made the verdict true")
	}
	v := given(first)
	v.Again = at.Add(3 * time.Second)
	s, at = feed(s, v.Again, health.Tally{OK: 13})
	if got := s.Withhold(v, at, rules); got != "" {
		t.Errorf("most users are renewed since, and the verdict is held: %s", got)
	}
}

// Users wait for their last refusal while all is well again, and get it when the next bad moment
// begins.
func TestVerdictsConfirmedInABadMomentAreHeld(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{Dead: 3, OK: 100})
	v := grant.Verdict{At: noon}
	s, at = feed(s, at.Add(30*time.Second), health.Tally{OK: 100}, health.Tally{OK: 100})
	v.Again = at.Add(3 * time.Second)
	s, at = feed(s, v.Again, health.Tally{Again: 8}, health.Tally{Again: 8})
	if s.Withhold(v, at, rules) != health.ReasonMassFailure {
		t.Error("a verdict confirmed while everybody is refused is believed")
	}
	s, at = feed(s, at, health.Tally{OK: 20})
	if got := s.Withhold(v, at, rules); got != "" {
		t.Errorf("most are renewed, and the verdict is held: %s", got)
	}
}

// Users who have left in a bad moment are held back and asked again, more often than others are
// renewed. That they are refused again holds none of them for longer: only a moment in which nobody
// was renewed does.
func TestThoseWhoAreHeldDoNotHoldOneAnother(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 300}, health.Tally{},
		health.Tally{Dead: 8}, health.Tally{Dead: 4, OK: 1})
	v := given(at.Add(-time.Second))
	if s.Withhold(v, at.Add(30*time.Second), rules) != health.ReasonMassFailure {
		t.Fatal("a verdict given while everybody was refused is believed")
	}
	for range 60 { // one is renewed each second, and the twelve are refused twice in five seconds
		s, at = feed(s, at, health.Tally{OK: 1, Again: 5})
	}
	v.Again = at
	s, at = feed(s, at, health.Tally{Again: 5}, health.Tally{Again: 5}, health.Tally{Again: 5})
	if s.Withhold(v, at, rules) != health.ReasonMassFailure {
		t.Error("a verdict is believed though no user was renewed since the last refusal but one")
	}
	s, at = feed(s, at, health.Tally{OK: 1, Again: 5}, health.Tally{OK: 1, Again: 5})
	if got := s.Withhold(v, at, rules); got != "" {
		t.Errorf("others are renewed, and the verdict is held: %s", got)
	}
}

// Where there are few users, most of them are fewer than the guard counts. That no user was renewed
// since says as much.
func TestVerdictsWithoutAWitnessAreHeld(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1}, health.Tally{Dead: 1},
		health.Tally{Dead: 2, Again: 1}, health.Tally{Again: 3})
	v := given(noon.Add(2 * time.Second))
	if s.Withhold(v, at.Add(40*time.Second), rules) != schema.ReasonNobodyRenewed {
		t.Error("a verdict is believed though no user was renewed since")
	}
	if got := s.Withhold(v, v.At.Add(rules.Alone), rules); got != "" {
		t.Errorf("the only user who comes is held for ever: %s", got)
	}
	if s, at = feed(s, at, health.Tally{OK: 1}); s.Withhold(v, at, rules) != "" {
		t.Error("somebody is renewed again, and the verdict is held")
	}
}
