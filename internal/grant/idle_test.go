package grant_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// resting is a policy by which users who are idle for a week rest, and sessions end after a month.
var resting = new(
	grant.Policy{Idle: 7 * 24 * time.Hour, SessionMax: 30 * 24 * time.Hour}.WithDefaults())

// used is a live grant whose login is this long ago, and the last request for it.
func used(login, active time.Duration) grant.Grant {
	g := live(10 * time.Minute)
	g.LoginAt, g.ActiveAt = noon.Add(-login), noon.Add(-active)
	return g
}

func TestUsersWhomNothingAsksForRest(t *testing.T) {
	const day = 24 * time.Hour
	timer, request := grant.Work{Cause: due}, grant.Work{Cause: asked}
	unknown := live(10 * time.Minute)
	for name, tt := range map[string]struct {
		g    grant.Grant
		w    grant.Work
		p    *grant.Policy
		want grant.Step
	}{
		"a timer of an idle one":    {used(20*day, 7*day), timer, resting, grant.Sleep},
		"of one who was asked for":  {used(20*day, 7*day-time.Second), timer, resting, grant.Sync},
		"of one who signed in":      {used(day, 20*day), timer, resting, grant.Sync},
		"a request for an idle one": {used(20*day, 8*day), request, resting, grant.Sync},
		"without the policy":        {used(99*day, 99*day), timer, policy, grant.Sync},
		"a session past its limit":  {used(30*day, 0), timer, resting, grant.End},
		"asked for past its limit":  {used(30*day, 0), request, resting, grant.End},
		"idle, and past its limit":  {used(31*day, 9*day), timer, resting, grant.End},
		"whose token may be spent": {
			with(used(20*day, 8*day), doubted), timer, resting, grant.Refresh,
		},
		"whose token was refused once": {
			with(used(20*day, 8*day), refusedOnce), timer, resting, grant.Refresh,
		},
		"without a refresh token": {
			with(used(20*day, 8*day), unrenewable), timer, resting, grant.Sync,
		},
		"of whom nothing is known": {unknown, timer, resting, grant.Sync},
	} {
		if got := grant.Decide(&tt.g, tt.w, tt.p, noon); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func with(g grant.Grant, change func(*grant.Grant)) grant.Grant {
	change(&g)
	return g
}

func doubted(g *grant.Grant) {
	g.Doubt = &grant.Doubt{Fingerprint: g.Fingerprint(), Since: noon}
}

func refusedOnce(g *grant.Grant) {
	g.Verdict = &grant.Verdict{Fingerprint: g.Fingerprint(), At: noon.Add(-time.Hour)}
}

func unrenewable(g *grant.Grant) { g.Pair.Refresh = secret.Value{} }

func inRest(c schema.Cause, now time.Time) grant.Turn {
	t := turn(c, now)
	t.Policy = resting
	return t
}

func TestADormantGrantKeepsItsSessionUntilItIsAskedFor(t *testing.T) {
	before := used(20*24*time.Hour, 8*24*time.Hour)
	g := before.Slept(inRest(due, noon))
	if g.Status != grant.Dormant || !same(g.Pair, before.Pair) || g.Version <= before.Version ||
		!g.NextDueAt.Equal(before.LoginAt.Add(resting.SessionMax)) {
		t.Fatalf("%+v", g)
	}
	endless := before.Slept(turn(due, noon))
	if !endless.NextDueAt.IsZero() || !endless.Resting() || !endless.Due().At.IsZero() {
		t.Errorf("without a limit it is due %v", endless.NextDueAt)
	}
	if step := grant.Decide(&g, grant.Work{Cause: due}, resting, noon); step != grant.Drop {
		t.Errorf("a timer is %s", step)
	}
	end := grant.Work{Cause: due}
	if step := grant.Decide(&g, end, resting, g.NextDueAt.Add(-time.Second)); step != grant.End {
		t.Errorf("the end of the session is %s", step)
	}
	// Whoever asks wakes it, and that is stored though nothing else has changed.
	late := noon.Add(time.Hour)
	woken := g.Resumed(inRest(asked, late))
	if woken.Status != grant.Live || g.Resumed(inRest(due, late)).Status != grant.Dormant {
		t.Errorf("asked for, it is %s", woken.Status)
	}
	step := grant.Decide(&woken, grant.Work{Cause: asked}, resting, late)
	if step != grant.Refresh {
		t.Errorf("asked for, it is to %s", step)
	}
	woken.Pair.ExpiresAt = late.Add(time.Hour)
	next, write := woken.WithProfile(inRest(asked, late), woken.Profile)
	if !write || next.Status != grant.Live || !next.NextDueAt.After(late) ||
		!next.ActiveAt.Equal(late) {
		t.Errorf("write %t: %+v", write, next)
	}
	// And so does a login.
	in := in(t, g, 9, 9).AsCandidate().Proven(inRest(asked, noon))
	if in.Status != grant.Live || !same(in.Pair, login(9)) {
		t.Errorf("signed in again: %+v", in)
	}
}

// A user who fell asleep during an outage has not failed alone for all the time of the sleep.
func TestFailuresAreNotCountedAcrossASleep(t *testing.T) {
	for name, outages := range map[string]int{"a few": 2, "answered": resting.Tries} {
		g := used(20*24*time.Hour, 8*24*time.Hour)
		for range outages {
			g = g.Failed(inRest(due, noon), grant.Failure{Reason: schema.ReasonProviderUnavailable})
		}
		g = g.Slept(inRest(due, noon))
		if g.Outages != 0 || g.Attempts != 0 || !g.FailingSince.IsZero() || g.ToldAlone {
			t.Errorf("%s: asleep, it fails since %v, %d outages", name, g.FailingSince, g.Outages)
		}
		late := noon.Add(48 * time.Hour)
		g = g.Resumed(inRest(asked, late))
		if !g.Recovered {
			t.Errorf("%s: a success is no recovery", name)
		}
		g = g.Failed(inRest(asked, late), grant.Failure{Reason: schema.ReasonProviderUnavailable})
		if g.Outages != 1 || !g.FailingSince.Equal(late) {
			t.Errorf("%s: awake, it fails since %v, %d outages", name, g.FailingSince, g.Outages)
		}
	}
}

// A limit that was raised, or removed, leaves no due time behind that is over: its timer would fire
// for ever.
func TestADormantSessionEndsByTheLimitOfToday(t *testing.T) {
	g := used(20*24*time.Hour, 8*24*time.Hour).Slept(inRest(due, noon))
	end := g.NextDueAt
	for name, limit := range map[string]time.Duration{"raised": 60 * 24 * time.Hour, "removed": 0} {
		p := *resting
		p.SessionMax = limit
		if step := grant.Decide(&g, grant.Work{Cause: due}, &p, end); step != grant.Sleep {
			t.Errorf("%s: the timer is %s", name, step)
		}
		by := inRest(due, end)
		by.Policy = &p
		next := g.Slept(by)
		if at := next.NextDueAt; !at.IsZero() && !at.Equal(g.LoginAt.Add(limit)) {
			t.Errorf("%s: due %v", name, at)
		}
		if step := grant.Decide(&next, grant.Work{Cause: due}, &p, end); step != grant.Drop {
			t.Errorf("%s: the next timer is %s", name, step)
		}
	}
}

// What a service asks for is written down, but not each time.
func TestActivityIsWrittenDownNowAndThen(t *testing.T) {
	for since, want := range map[time.Duration]bool{
		5*time.Minute - time.Second: false, 5 * time.Minute: true,
	} {
		g := used(time.Hour, since)
		g = g.Resumed(inRest(asked, noon))
		if _, write := g.WithProfile(inRest(asked, noon), g.Profile); write != want {
			t.Errorf("after %v: write %t", since, write)
		}
	}
	g := used(time.Hour, time.Hour).Resumed(turn(asked, noon))
	if _, write := g.WithProfile(turn(asked, noon), g.Profile); write {
		t.Error("without the policy it is written down")
	}
	g = used(time.Hour, time.Hour)
	if !g.Notes(resting, noon) || new(g.Noted("n", noon)).Notes(resting, noon) {
		t.Error("a read is noted wrongly")
	}
}

func TestASessionThatEndsIsToldAsSignedOut(t *testing.T) {
	g := in(t, used(30*24*time.Hour, 0), 9, 9) // a login waits
	out := g.SessionEnded(inRest(asked, noon))
	d, err := schema.Data[schema.SignedOut](out.Event("/renewd", noon, grant.ShowMapped))
	if err != nil || d.Reason != schema.ReasonSessionMax || d.Revoked || d.Cause.ID != asked.ID {
		t.Errorf("%+v, %v", d, err)
	}
	if out.Status != grant.SignedOff || out.Pair != (grant.Pair{}) || out.Candidate == nil {
		t.Errorf("%+v", out)
	}
	// The cause may have been answered before, by an event that was published again.
	if id := grant.OutcomeID(key, asked); out.Pending.ID == id {
		t.Error("it has the id of the cause's usual answer")
	}
	// The end comes before a login that waits: unproven ones must not prolong a session.
	turned, w := g.Turned(grant.Work{Cause: due}, resting, noon)
	if turned.OnCandidate() || grant.Decide(&turned, w, resting, noon) != grant.End {
		t.Errorf("the login comes first: %s", grant.Decide(&turned, w, resting, noon))
	}
	in := out.AsCandidate().Proven(inRest(asked, noon))
	if in.Status != grant.Live || in.Recovered {
		t.Errorf("%+v", in)
	}
}

// A due time is in a window, but a refresh token that dies unused does not wait for one, nor does
// the end of a session.
func TestDueTimesKeepToThePolicy(t *testing.T) {
	p := grant.Policy{Keepalive: 72 * time.Hour, SessionMax: 80 * time.Hour}.WithDefaults()
	p.Windows = windows(t, "Mon-Fri 09:00-17:00").Windows // noon is on a Sunday
	rotated := func(p grant.Policy, life, sinceLogin time.Duration) grant.Grant {
		g := used(sinceLogin, 0)
		tn := turn(asked, noon)
		p.MaxLifetime = 1000 * time.Hour
		tn.Policy, tn.Draw = &p, 0
		fresh := tokens(1)
		fresh.ExpiresIn, fresh.SentAt = life, noon
		return g.Rotated(tn, fresh, g.Fingerprint())
	}
	monday := noon.Add(21 * time.Hour)
	if g := rotated(p, time.Hour, 0); !g.NextDueAt.Equal(monday) {
		t.Errorf("outside the window it is due %v", g.NextDueAt)
	}
	if g := rotated(p, 999*time.Hour, 0); !g.NextDueAt.Equal(noon.Add(72 * time.Hour)) {
		t.Errorf("to be kept alive it is due %v", g.NextDueAt)
	}
	if g := rotated(p, 999*time.Hour, 20*time.Hour); !g.NextDueAt.Equal(noon.Add(60 * time.Hour)) {
		t.Errorf("to be ended it is due %v", g.NextDueAt)
	}
	g := rotated(p, 999*time.Hour, 0)
	at := noon.Add(72*time.Hour - time.Second) // timers may be early
	if step := grant.Decide(&g, grant.Work{Cause: due}, &p, at); step != grant.Refresh {
		t.Errorf("at the time to keep it alive: %s", step)
	}
	step := grant.Decide(&g, grant.Work{Cause: due}, &p, at.Add(-time.Hour))
	if step != grant.Sync {
		t.Errorf("before it: %s", step)
	}
}

// A request is served at once, and tried on where it fails; what nothing asks for waits.
func TestRetriesKeepToTheWindowsUnlessSomebodyWaits(t *testing.T) {
	p := windows(t, "Mon-Fri 09:00-17:00").WithDefaults()
	p.Keepalive = 72 * time.Hour
	failed := func(c schema.Cause, before int, change func(*grant.Grant)) time.Time {
		g := with(used(time.Hour, 0), change)
		g.Outages = before
		tn := turn(c, noon)
		tn.Policy, tn.Draw = &p, 0
		return g.Failed(tn, grant.Failure{Reason: schema.ReasonProviderUnavailable}).NextDueAt
	}
	none := func(*grant.Grant) {}
	monday := noon.Add(21 * time.Hour)
	presented := func(ago time.Duration) func(*grant.Grant) {
		return func(g *grant.Grant) { g.Pair.SentAt = noon.Add(-ago) }
	}
	inTime := failed(due, 0, presented(70*time.Hour))
	if !inTime.Equal(noon.Add(2 * time.Hour)) {
		t.Errorf("to be kept alive before the window opens it is tried %v", inTime)
	}
	for name, tt := range map[string]struct {
		at   time.Time
		wait bool
	}{
		"a token to keep alive":  {failed(due, 0, presented(72*time.Hour)), false},
		"a token used of late":   {failed(due, 0, presented(time.Hour)), true},
		"a timer":                {failed(due, 0, none), true},
		"a request":              {failed(asked, 0, none), false},
		"a request, answered":    {failed(asked, p.Tries, none), true},
		"a token, perhaps spent": {failed(due, 0, doubted), false},
	} {
		if waits := tt.at.Equal(monday); waits != tt.wait {
			t.Errorf("%s: %v", name, tt.at)
		}
	}
}
