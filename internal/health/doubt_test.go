package health_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
)

func TestMassFailureHoldsVerdicts(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1000}, health.Tally{OK: 1, Dead: 500})
	if said(s) != "" || s.Withhold(given(noon), at, rules) != "" {
		t.Fatal("a third of the users gone trips the guard")
	}
	s, at = feed(s, at, health.Tally{OK: 1, Dead: 600})
	if s.Doubt == nil || said(s) != degraded+health.ReasonMassFailure {
		t.Fatalf("most users gone: %s", said(s))
	}
	if s.Withhold(given(noon), at, rules) != health.ReasonMassFailure {
		t.Error("a verdict is believed while most users are refused")
	}
	if !s.Doubt.Until.IsZero() || s.Limit(at, 50) != 50 || !s.PausedUntil(at).IsZero() {
		t.Errorf("those who are renewed wait for those who are not: %+v", s.Doubt)
	}
	s, at = feed(s, at, health.Tally{OK: 2000})
	if s.Doubt != nil || said(s) != recovered+health.ReasonMassFailure ||
		s.Withhold(given(noon), at, rules) != "" {
		t.Errorf("most users are renewed again, and verdicts are held: %s", said(s))
	}
}

// Only while no user is renewed do presentations wait: they would spend tokens on what may be our
// own fault. The tries come soon, and the first user who is renewed ends the wait for all.
func TestPresentationsWaitOnlyWhileNobodyIsRenewed(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 5000}, health.Tally{Dead: 10},
		health.Tally{Dead: 10})
	if s.Doubt == nil || !s.Doubt.Until.Equal(at.Add(rules.OpenMin)) {
		t.Fatalf("twenty refused in a row, nobody renewed: %+v", s.Doubt)
	}
	if !s.PausedUntil(at).IsZero() || s.Limit(at, 50) != 50 {
		t.Error("logins are not delivered either")
	}
	var waits []time.Duration
	for range 8 {
		before := s.Doubt.Until
		s = s.Next(health.Tally{Dead: 1}, "a", before, rules)
		waits = append(waits, s.Doubt.Until.Sub(before)/time.Second)
	}
	if got := fmt.Sprint(waits); got != "[2ns 4ns 8ns 16ns 32ns 60ns 60ns 60ns]" {
		t.Errorf("seconds between tries: %s", got)
	}
	if s.Withhold(given(noon), noon.Add(100*rules.Hold), rules) != health.ReasonMassFailure {
		t.Error("verdicts are believed though no user at all is renewed")
	}
	// A user who signed in meanwhile is renewed.
	if s = s.Next(
		health.Tally{OK: 1}, "a", s.Doubt.Until.Add(-time.Second), rules,
	); s.Doubt != nil && !s.Doubt.Until.IsZero() {
		t.Errorf("everybody waits on: %+v", s.Doubt)
	}
}

// What doctor advises works: a changed rule holds for what is in force, without anything else
// happening.
func TestChangedRulesEndWhatIsInForce(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 1}, health.Tally{Dead: 30})
	if s.Doubt == nil || s.Doubt.Until.IsZero() {
		t.Fatal("no pause")
	}
	raised := rules
	raised.DeadShare = 1.1
	s = s.Next(health.Tally{}, "a", at, raised)
	if s.Doubt != nil || said(s) != recovered+health.ReasonMassFailure {
		t.Errorf("dead_share was raised: %+v", s.Doubt)
	}
	if s = s.Next(health.Tally{Dead: 30}, "a", at, raised); s.Doubt != nil {
		t.Error("switched off, and it trips")
	}
	s, at = feed(health.State{}, noon, health.Tally{Failed: 10})
	off := rules
	off.FailShare = 1.1
	if s = s.Next(health.Tally{}, "a", at, off); s.Outage != nil {
		t.Error("fail_share was raised, and the breaker stays open")
	}
	if until := s.PausedUntil(at); until.IsZero() || until.After(at) {
		t.Errorf("a pause that would go on is not lifted: %v", until)
	}
}

// A record that a version before wrote in the middle of a mass failure goes on as a doubt.
func TestAnOlderRecordGoesOn(t *testing.T) {
	s := health.State{
		Settings: "a",
		Outage: &health.Outage{
			Reason: health.ReasonMassFailure,
			Since:  noon,
			Until:  noon.Add(time.Hour),
		},
	}
	if s = s.Next(health.Tally{}, "a", noon, rules); s.Outage != nil || s.Doubt == nil ||
		!s.Doubt.Since.Equal(noon) {
		t.Errorf("%+v %+v", s.Outage, s.Doubt)
	}
}

// In a backlog a verdict is confirmed long after it was given. What all users were told at that
// time is still known, and the successes just before it speak against no user.
func TestVerdictsAreWeighedAgainstTheLastHour(t *testing.T) {
	s, at := feed(health.State{}, noon, health.Tally{OK: 300}, health.Tally{OK: 1, Dead: 12})
	first := at
	for range 40 {
		s, at = pass(s, at, time.Minute)
		s, at = feed(s, at, health.Tally{OK: 0, Again: 1})
	}
	v := grant.Verdict{At: first, Again: at.Add(-10 * time.Second)}
	if s.Withhold(v, at, rules) != health.ReasonMassFailure {
		t.Error("40 minutes later nobody knows that everybody was refused")
	}
	for range 100 {
		s, at = pass(s, at, 37*time.Second)
		s, at = feed(s, at, health.Tally{OK: 1})
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
	verdict *grant.Verdict
	told    time.Time
	renewed time.Time
}

// ward is a provider's users, by when they are due.
type ward struct {
	t     *testing.T
	state health.State
	rules health.Rules
	due   map[int64][]*patient
	late  int // renewals of the living that were more than a minute late
	told  int
}

const cycle = 30 * time.Minute

func (w *ward) arm(p *patient, at time.Time) { w.due[at.Unix()] = append(w.due[at.Unix()], p) }

// second handles all who are due at a time.
func (w *ward) second(at time.Time) {
	var tally health.Tally
	for i, p := range w.due[at.Unix()] {
		switch d := w.state.Doubt; {
		case d != nil && at.Before(d.Until):
			w.arm(p, d.Until.Add(time.Second).Truncate(time.Second))
		case p.dead:
			w.refuse(p, i, at, &tally)
		default:
			if at.Sub(p.renewed) > cycle+time.Minute {
				w.late++
			}
			p.renewed = at
			tally.OK++
			w.arm(p, at.Add(cycle))
		}
	}
	delete(w.due, at.Unix())
	w.state = w.state.Next(tally, "a", at, w.rules)
}

// refuse is what becomes of a user who has left: refused three times, then told, or held and asked
// again.
func (w *ward) refuse(p *patient, nth int, at time.Time, tally *health.Tally) {
	switch v := p.verdict; {
	case v == nil:
		tally.Dead++
		p.verdict = &grant.Verdict{At: at}
		w.arm(p, at.Add(45*time.Second))
		return
	case v.Again.IsZero():
		v.Again = at
		w.arm(p, at.Add(10*time.Second))
	case w.state.Withhold(*v, at, w.rules) != "":
		v.Again = at
		w.arm(p, at.Add(3*time.Minute+time.Duration(nth%120)*time.Second))
	default:
		p.told = at
		w.told++
		if held := at.Sub(v.At); held < w.rules.Hold {
			w.t.Fatalf("signed out %v after the first refusal", held)
		}
	}
	tally.Again++
}

// 60 % of 10,000 users are really signed out by their provider, and 40 % are fine. The living are
// renewed on time all the while. No user is signed out before the hold is over, and then the dead
// are.
func TestTheLivingAreRenewedWhileTheDeadAreHeld(t *testing.T) {
	const users = 10_000
	w := ward{
		t:     t,
		state: health.State{Settings: "a", ProvenAt: noon},
		rules: rules,
		due:   map[int64][]*patient{},
	}
	w.rules.Hold = 6 * time.Hour
	var all []*patient
	for i := range users {
		p := &patient{dead: i%5 < 3, renewed: noon}
		all = append(all, p)
		w.arm(p, noon.Add(time.Duration(i)*cycle/users).Truncate(time.Second))
	}
	for at := noon; at.Before(noon.Add(9 * time.Hour)); at = at.Add(time.Second) {
		w.second(at)
	}
	if w.late != 0 {
		t.Errorf("%d renewals of the living were more than a minute late", w.late)
	}
	for _, p := range all {
		if p.dead && p.told.IsZero() ||
			!p.dead && (!p.told.IsZero() || p.renewed.Before(noon.Add(8*time.Hour))) {
			t.Fatalf("at the end %+v", *p)
		}
	}
	s := w.state
	if w.told != users*3/5 || s.Doubt != nil || len(s.Untold) != 2 ||
		said(s) != recovered+health.ReasonMassFailure {
		t.Errorf("%d told, doubt %+v, events %+v", w.told, s.Doubt, s.Untold)
	}
}
