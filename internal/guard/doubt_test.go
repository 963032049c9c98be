package guard_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
)

func TestMassFailureHoldsVerdicts(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1000}, guard.Tally{OK: 1, Dead: 500})
	if said(s) != "" || s.Hold(given(noon), at, rules) != "" {
		t.Fatal("a third of the users gone trips the guard")
	}
	s, at = feed(s, at, guard.Tally{OK: 1, Dead: 600})
	if s.Doubt == nil || said(s) != degraded+guard.ReasonMassFailure {
		t.Fatalf("most users gone: %s", said(s))
	}
	if s.Hold(given(noon), at, rules) != guard.ReasonMassFailure {
		t.Error("a verdict is believed while most users are refused")
	}
	if !s.Doubt.Until.IsZero() || s.Limit(at, 50) != 50 || !s.PausedUntil(at).IsZero() {
		t.Errorf("those who are renewed wait for those who are not: %+v", s.Doubt)
	}
	s, at = feed(s, at, guard.Tally{OK: 2000})
	if s.Doubt != nil || said(s) != recovered+guard.ReasonMassFailure || s.Hold(given(noon), at, rules) != "" {
		t.Errorf("most users are renewed again, and verdicts are held: %s", said(s))
	}
}

// Only while nobody at all is renewed do presentations wait: they would spend tokens on what may be our own fault. The tries
// come soon, and anybody who is renewed ends it for all.
func TestPresentationsWaitOnlyWhileNobodyIsRenewed(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 5000}, guard.Tally{Dead: 10}, guard.Tally{Dead: 10})
	if s.Doubt == nil || !s.Doubt.Until.Equal(at.Add(rules.OpenMin)) {
		t.Fatalf("twenty refused in a row, nobody renewed: %+v", s.Doubt)
	}
	if !s.PausedUntil(at).IsZero() || s.Limit(at, 50) != 50 {
		t.Error("logins are not delivered either")
	}
	var waits []time.Duration
	for range 8 {
		before := s.Doubt.Until
		s = s.Next(guard.Tally{Dead: 1}, "a", before, rules)
		waits = append(waits, s.Doubt.Until.Sub(before)/time.Second)
	}
	if got := fmt.Sprint(waits); got != "[2ns 4ns 8ns 16ns 32ns 60ns 60ns 60ns]" {
		t.Errorf("seconds between tries: %s", got)
	}
	if s.Hold(given(noon), noon.Add(100*rules.Hold), rules) != guard.ReasonMassFailure {
		t.Error("verdicts are believed though nobody at all is renewed")
	}
	// Somebody who signed in meanwhile is renewed.
	if s = s.Next(guard.Tally{OK: 1}, "a", s.Doubt.Until.Add(-time.Second), rules); s.Doubt != nil && !s.Doubt.Until.IsZero() {
		t.Errorf("everybody waits on: %+v", s.Doubt)
	}
}

// What doctor advises works: a changed rule holds for what is in force, without anything else happening.
func TestChangedRulesEndWhatIsInForce(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 1}, guard.Tally{Dead: 30})
	if s.Doubt == nil || s.Doubt.Until.IsZero() {
		t.Fatal("no pause")
	}
	raised := rules
	raised.DeadShare = 1.1
	s = s.Next(guard.Tally{}, "a", at, raised)
	if s.Doubt != nil || said(s) != recovered+guard.ReasonMassFailure {
		t.Errorf("dead_share was raised: %+v", s.Doubt)
	}
	if s = s.Next(guard.Tally{Dead: 30}, "a", at, raised); s.Doubt != nil {
		t.Error("switched off, and it trips")
	}
	s, at = feed(guard.State{}, noon, guard.Tally{Failed: 10})
	off := rules
	off.FailShare = 1.1
	if s = s.Next(guard.Tally{}, "a", at, off); s.Outage != nil {
		t.Error("fail_share was raised, and the breaker stays open")
	}
	if until := s.PausedUntil(at); until.IsZero() || until.After(at) {
		t.Errorf("a pause that would go on is not lifted: %v", until)
	}
}

// A record that a version before wrote in the middle of a mass failure goes on as a doubt.
func TestAnOlderRecordGoesOn(t *testing.T) {
	s := guard.State{Settings: "a", Outage: &guard.Outage{Reason: guard.ReasonMassFailure, Since: noon, Until: noon.Add(time.Hour)}}
	if s = s.Next(guard.Tally{}, "a", noon, rules); s.Outage != nil || s.Doubt == nil || !s.Doubt.Since.Equal(noon) {
		t.Errorf("%+v %+v", s.Outage, s.Doubt)
	}
}

// In a backlog a verdict is confirmed long after it was given. What was said to everybody when it was is still known, and
// the successes just before it speak against nobody.
func TestVerdictsAreWeighedAgainstTheLastHour(t *testing.T) {
	s, at := feed(guard.State{}, noon, guard.Tally{OK: 300}, guard.Tally{OK: 1, Dead: 12})
	first := at
	for range 40 {
		s, at = pass(s, at, time.Minute)
		s, at = feed(s, at, guard.Tally{OK: 0, Again: 1})
	}
	v := grant.Verdict{At: first, Again: at.Add(-10 * time.Second)}
	if s.Hold(v, at, rules) != guard.ReasonMassFailure {
		t.Error("40 minutes later nobody knows that everybody was refused")
	}
	for range 100 {
		s, at = pass(s, at, 37*time.Second)
		s, at = feed(s, at, guard.Tally{OK: 1})
	}
	if n := len(s.Lately); n > 130 {
		t.Errorf("%d pieces are kept", n)
	}
	if s.Lately[0].From.Before(at.Add(-62 * time.Minute)) {
		t.Errorf("remembered since %v", at.Sub(s.Lately[0].From))
	}
}

// patient is one user of the simulation.
type patient struct {
	dead    bool
	due     time.Time
	verdict *grant.Verdict
	told    time.Time
	renewed time.Time
}

// 60 % of 10,000 users are signed out by their provider, for true, and 40 % are fine. The living are renewed on time all
// the while, nobody is signed out before the hold is over, and then the dead are.
func TestTheLivingAreRenewedWhileTheDeadAreHeld(t *testing.T) {
	const users, cycle = 10_000, 30 * time.Minute
	r := rules
	r.Hold = 6 * time.Hour
	due := map[int64][]*patient{}
	arm := func(p *patient, at time.Time) { p.due = at; due[at.Unix()] = append(due[at.Unix()], p) }
	var all []*patient
	for i := range users {
		p := &patient{dead: i%5 < 3, renewed: noon}
		all = append(all, p)
		arm(p, noon.Add(time.Duration(i)*cycle/users).Truncate(time.Second))
	}
	s, late, told := guard.State{Settings: "a", ProvenAt: noon}, 0, 0
	for at := noon; at.Before(noon.Add(9 * time.Hour)); at = at.Add(time.Second) {
		var tally guard.Tally
		for i, p := range due[at.Unix()] {
			if d := s.Doubt; d != nil && at.Before(d.Until) {
				arm(p, d.Until.Add(time.Second).Truncate(time.Second))
				continue
			}
			if !p.dead {
				if at.Sub(p.renewed) > cycle+time.Minute {
					late++
				}
				p.renewed = at
				tally.OK++
				arm(p, at.Add(cycle))
				continue
			}
			switch v := p.verdict; {
			case v == nil:
				tally.Dead++
				p.verdict = &grant.Verdict{At: at}
				arm(p, at.Add(45*time.Second))
			case v.Again.IsZero():
				tally.Again++
				v.Again = at
				arm(p, at.Add(10*time.Second))
			default:
				tally.Again++
				if s.Hold(*v, at, r) != "" {
					v.Again = at
					arm(p, at.Add(3*time.Minute+time.Duration(i%120)*time.Second))
					continue
				}
				p.told = at
				told++
				if at.Sub(v.At) < r.Hold {
					t.Fatalf("signed out %v after the first refusal", at.Sub(v.At))
				}
			}
		}
		delete(due, at.Unix())
		s = s.Next(tally, "a", at, r)
	}
	if late != 0 {
		t.Errorf("%d renewals of the living were more than a minute late", late)
	}
	for _, p := range all {
		if p.dead && p.told.IsZero() || !p.dead && !p.told.IsZero() {
			t.Fatalf("at the end %+v", *p)
		}
	}
	if told != users*3/5 || s.Doubt != nil || len(s.Untold) != 2 || said(s) != recovered+guard.ReasonMassFailure {
		t.Errorf("%d told, doubt %+v, events %+v", told, s.Doubt, s.Untold)
	}
}
