package login_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// hold is the user.suspend, or user.resume, n, as the stream took it at the world's time.
func (w *world) hold(of schema.Type, n int, body string) *runner.Message {
	m := w.logout(n, body)
	m.Subject = string(of) + ".acme.u17"
	m.Header.Set("ce-type", string(of))
	m.Header.Set("ce-id", fmt.Sprintf("%s-%d", of, n))
	return m
}

// outcome is the one outcome that was told.
func outcome[T any](w *world) T {
	w.t.Helper()
	if len(w.told) != 1 {
		w.t.Fatalf("told %+v", w.told)
	}
	d, err := schema.Data[T](w.told[0])
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func TestASuspensionKeepsTheTokensAndTells(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	before := w.signIn(c, 1)
	w.must(c, w.hold(schema.UserSuspend, 2, `{"reason":"by hand"}`))
	g := w.stored()
	if g.Status != grant.Suspended || g.Fingerprint() != before.Fingerprint() || !g.Resting() ||
		w.disarmed != 1 {
		t.Errorf("%+v, disarmed %d", g, w.disarmed)
	}
	d := outcome[schema.Suspended](w)
	if d.Cause.ID != "user.suspend-2" || d.Reason != "by hand" || d.Version <= before.Version {
		t.Errorf("%+v", d)
	}
	w.must(c, w.hold(schema.UserSuspend, 3, ``)) // another one: idempotent, and answered
	if g := w.stored(); g.Status != grant.Suspended || len(w.told) != 2 {
		t.Errorf("%s, told %d", g.Status, len(w.told))
	}
}

// Whoever asks for it is answered by the renewal that the resumption wakes.
func TestAResumptionWakesTheGrant(t *testing.T) {
	for name, suspended := range map[string]bool{"suspended": true, "live": false} {
		w := newWorld(t)
		c := w.consumer()
		before := w.signIn(c, 1)
		if suspended {
			w.must(c, w.hold(schema.UserSuspend, 2, ``))
		}
		told := len(w.told)
		w.woken, w.publishedUpTo = nil, new(w.stored()).Mark()
		m := w.hold(schema.UserResume, 3, ``)
		w.must(c, m)
		g := w.stored()
		if g.Status != grant.Live || g.Fingerprint() != before.Fingerprint() ||
			len(w.told) != told {
			t.Errorf("%s: %+v, told %d", name, g, len(w.told))
		}
		if len(w.woken) != 1 || w.woken[0].Cause.ID != "user.resume-3" ||
			w.woken[0].Mark != w.publishedUpTo {
			t.Errorf("%s: woken %+v", name, w.woken)
		}
		m.Deliveries++ // its acknowledgement was lost
		w.must(c, m)
		if len(w.woken) != 2 || !w.woken[1].Again || w.stored().Revision != g.Revision {
			t.Errorf("%s: delivered again: woken %+v", name, w.woken)
		}
	}
}

// The mark of a wake says that all up to it is published, which is not so of an outcome whose
// worker was killed before it told.
func TestAResumptionClaimsNoOutcomeThatIsNotTold(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	g := w.signIn(c, 1)
	w.publishedUpTo = g.Mark()
	turn := grant.Turn{
		Work: grant.Work{
			Cause: schema.Cause{ID: "t1", Type: schema.CauseTimer, Source: "/renewd"},
		},
		Nonce: "killed", Now: w.now, Policy: new(grant.Policy{}.WithDefaults()),
	}
	g = g.SignedOut(turn, grant.Verdict{Reason: schema.ReasonRevoked})
	if _, err := w.store.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	w.woken = nil
	w.must(c, w.hold(schema.UserResume, 3, ``))
	if told := new(w.stored()).ToldAt(w.woken[0].Mark); len(told) > 0 {
		t.Errorf("by the mark %s of the wake it is told", w.woken[0].Mark)
	}
}

// A resumption ends no login: looking for older ones would take out those that were put off, which
// then were never answered.
func TestAResumptionLeavesOlderLoginsAlone(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.must(c, w.hold(schema.UserSuspend, 2, ``))
	w.older = true // the login 3
	w.lookedForLogins.Store(false)
	w.must(c, w.hold(schema.UserResume, 4, ``))
	if g := w.stored(); w.lookedForLogins.Load() || g.Status != grant.Live {
		t.Errorf("%s, looked for older logins %t", g.Status, w.lookedForLogins.Load())
	}
	if g := w.signIn(c, 3); g.Pair.Refresh.Reveal() != "refresh-3" {
		t.Errorf("the login is lost: %+v", g)
	}
}

// Promise 5: by their order in the stream, whatever order they are handled in.
func TestTheOrderOfTheStreamDecidesOnASuspension(t *testing.T) {
	const suspend, resume, logout, in = "suspend", "resume", "logout", "login"
	for name, tt := range map[string]struct {
		first, then string // at 3, and at 2
		want        grant.Status
	}{
		"a suspension before a resumption": {resume, suspend, grant.Live},
		"a resumption before a suspension": {suspend, resume, grant.Suspended},
		"a suspension before a login":      {in, suspend, grant.Live},
		"a suspension before a logout":     {logout, suspend, grant.SignedOff},
		"a logout before a suspension":     {suspend, logout, grant.SignedOff},
		"a resumption before a logout":     {logout, resume, grant.SignedOff},
	} {
		w := newWorld(t)
		c := w.consumer()
		w.signIn(c, 1)
		do := func(what string, n int) {
			switch what {
			case suspend:
				w.must(c, w.hold(schema.UserSuspend, n, ``))
			case resume:
				w.must(c, w.hold(schema.UserResume, n, ``))
			case logout:
				w.must(c, w.logout(n, ``))
			case in:
				w.signIn(c, n)
			}
		}
		do(tt.first, 3)
		do(tt.then, 2)
		if g := w.stored(); g.Status != tt.want {
			t.Errorf("%s: %s, want %s", name, g.Status, tt.want)
		}
	}
}

// Once a suspension is told nothing is presented any more, so it waits for what is under way.
func TestASuspensionWaitsForARenewal(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	claim := grant.ClaimRequest{Nonce: "worker", For: 10 * time.Second, Presented: true}
	if _, _, err := w.store.Claim(t.Context(), key, claim); err != nil {
		t.Fatal(err)
	}
	m := w.hold(schema.UserSuspend, 2, ``)
	if err := c.Handle(t.Context(), m); err == nil || w.stored().Status != grant.Live {
		t.Fatalf("it did not wait: %v", err)
	}
	w.now, m.Deliveries = w.now.Add(11*time.Second), 2
	w.must(c, m)
	if g := w.stored(); g.Status != grant.Suspended || g.Claim == nil {
		t.Errorf("%s, and what the claim says of the token is lost: %v", g.Status, g.Claim)
	}
	outcome[schema.Suspended](w)
}

// Killed at any step, and delivered again, a suspension is carried out and told once.
func TestASuspensionKilledAtEachStep(t *testing.T) {
	for _, step := range []string{"save", "saved", "publish", "published", "disarm"} {
		w := newWorld(t)
		c := w.consumer()
		w.signIn(c, 1)
		w.fails = step
		w.must(c, w.hold(schema.UserSuspend, 2, ``))
		if w.fails != "" {
			t.Fatalf("%s: no such step", step)
		}
		if g := w.stored(); g.Status != grant.Suspended || !g.Resting() {
			t.Errorf("%s: %+v", step, g)
		}
		if d := outcome[schema.Suspended](w); d.Cause.ID != "user.suspend-2" {
			t.Errorf("%s: %+v", step, d)
		}
	}
}

// A suspension that is found stored, and was followed by a login, leaves the login's timer alone.
func TestASuspensionDeliveredAgainAfterALogin(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	m := w.hold(schema.UserSuspend, 2, ``)
	w.must(c, m)
	newest := w.signIn(c, 3)
	told, disarmed := len(w.told), w.disarmed
	m.Deliveries++
	w.must(c, m)
	g := w.stored()
	if g.Revision != newest.Revision || len(w.told) != told || w.disarmed != disarmed {
		t.Errorf("%+v, told %d, disarmed %d", g, len(w.told), w.disarmed)
	}
}

// The same suspension, published again by an outbox after a resumption, suspends nobody.
func TestASuspensionPublishedAgainLaterIsAReplay(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.must(c, w.hold(schema.UserSuspend, 2, ``))
	w.must(c, w.hold(schema.UserResume, 3, ``))
	m := w.hold(schema.UserSuspend, 2, ``)
	m.Sequence = 9
	w.must(c, m)
	if g := w.stored(); g.Status != grant.Live || len(w.told) != 1 {
		t.Errorf("%s, told %d", g.Status, len(w.told))
	}
}

// A command that was carried out stays so, however many outcomes of its type followed its own.
func TestACommandPublishedAgainAfterOthersIsAReplay(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	renewed := func(cause schema.Cause) {
		w.told = append(w.told, schema.Event{
			ID: grant.OutcomeID(key, cause), Type: schema.UserSynced, Time: w.now,
		})
	}
	w.must(c, w.hold(schema.UserSuspend, 2, ``))
	w.must(c, w.hold(schema.UserResume, 3, ``))
	renewed(w.woken[len(w.woken)-1].Cause)
	w.now = w.now.Add(time.Hour)
	renewed(schema.Cause{ID: "t1", Type: schema.CauseTimer, Source: "/renewd"})
	w.must(c, w.hold(schema.UserSuspend, 4, ``))
	again := func(of schema.Type, n int, at uint64) {
		m := w.hold(of, n, ``)
		m.Header.Set("ce-time", noon.Format(time.RFC3339))
		m.Sequence = at
		w.must(c, m)
	}
	again(schema.UserResume, 3, 5)
	if g := w.stored(); g.Status != grant.Suspended {
		t.Errorf("resumed again: %s", g.Status)
	}
	w.must(c, w.hold(schema.UserResume, 6, ``))
	again(schema.UserSuspend, 2, 7)
	if g := w.stored(); g.Status != grant.Live {
		t.Errorf("suspended again: %s", g.Status)
	}
}

// A version that goes beyond all that was published must not make a refresh token of a restored
// store look like the newest: presenting it may end the session.
func TestACommandOnARestoredStorePresentsNothing(t *testing.T) {
	for name, commands := range map[string][]schema.Type{
		"resumed":                {schema.UserResume},
		"suspended, and resumed": {schema.UserSuspend, schema.UserResume},
	} {
		w := newWorld(t)
		c := w.consumer()
		g := w.signIn(c, 1)
		w.publishedUpTo = grant.Mark{Version: g.Version + 4, Token: "newer"}
		for i, of := range commands {
			w.must(c, w.hold(of, 2+i, ``))
		}
		g = w.stored()
		last := w.woken[len(w.woken)-1]
		step := grant.Decide(&g, last, new(grant.Policy{}.WithDefaults()), w.now)
		if !g.IsSuperseded() || step == grant.Refresh || step == grant.Sync {
			t.Errorf("%s: %s, to be %s", name, g.Status, step)
		}
		if n := len(commands); len(w.told) != n-1 || g.Hold.Sequence != uint64(n)+1 {
			t.Errorf("%s: told %+v, hold %d", name, w.told, g.Hold.Sequence)
		}
	}
}

// Each is answered, whatever there is of the user.
func TestWhatCannotBeSuspendedIsAnswered(t *testing.T) {
	for name, reason := range map[string]string{
		"unknown": schema.ReasonUnknownGrant, "unreadable": schema.ReasonUnreadable,
		"signed out": schema.ReasonSignedOut,
	} {
		w := newWorld(t)
		c := w.consumer()
		if name != "unknown" {
			w.signIn(c, 1)
		}
		switch name {
		case "unreadable":
			w.load = func(g grant.Grant, _ error) (grant.Grant, error) {
				return g, fmt.Errorf("load: %w", grant.ErrUnreadable)
			}
		case "signed out":
			w.must(c, w.logout(2, ``))
			w.told = nil
		}
		w.fails = "published"
		w.must(c, w.hold(schema.UserSuspend, 3, ``))
		if d := outcome[schema.RefreshFailed](w); d.Reason != reason ||
			d.Cause.ID != "user.suspend-3" {
			t.Errorf("%s: %+v", name, d)
		}
		_, err := w.store.Load(t.Context(), key)
		if gone := errors.Is(err, grant.ErrNotFound); gone != (name == "unknown") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
