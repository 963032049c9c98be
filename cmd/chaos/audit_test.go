package main

import (
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

var noon = time.Date(2027, 1, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time {
	return noon.Add(time.Duration(seconds * float64(time.Second)))
}

// newAudit is the audit of a run with these faults, with access tokens of a minute.
func newAudit(strikes ...*strike) *audit {
	return &audit{
		world:    &world{options: options{Life: time.Minute}},
		people:   &people{swept: map[string]bool{}},
		schedule: &schedule{strikes: strikes},
	}
}

// A login that was published for long carries tokens that are older than its last try.
func TestALoginThatTookLongToPublishMayBeUnprovable(t *testing.T) {
	who := &person{provider: &standIn{id: strict}, name: "u", bare: true}
	login := command{
		who:    who,
		id:     "l",
		source: "/crm",
		kind:   schema.UserLogin,
		tried:  at(0),
		sent:   at(20),
	}
	a := newAudit()
	for heard, want := range map[float64]bool{59: true, 40: false} {
		a.heard = []outcome{{
			kind:     schema.MessageRejected,
			provider: strict,
			user:     "u",
			reason:   schema.RejectUnproven,
			cause:    schema.Cause{ID: "l", Source: "/crm"},
			heard:    at(heard),
		}}
		if got := a.unprovable(login); got != want {
			t.Errorf("rejected after %v s: %t, want %t", heard, got, want)
		}
	}
}

// The provider ends a session that has no refresh token before the login could be proven.
func TestALoginOfAnEndedSessionIsUnprovable(t *testing.T) {
	who := &person{provider: &standIn{id: strict}, name: "u", bare: true}
	login := command{
		who: who, id: "l", source: "/crm", kind: schema.UserLogin, session: 7, tried: at(10),
	}
	a := newAudit()
	a.people.opens = map[string]time.Time{strict + "7": at(10)}
	a.heard = []outcome{{
		kind: schema.MessageRejected, provider: strict, user: "u", reason: schema.RejectUnproven,
		cause: schema.Cause{ID: "l", Source: "/crm"}, heard: at(20),
	}}
	for ended, want := range map[float64]bool{5: false, 15: true, 25: false} {
		who.ended = []time.Time{at(ended), at(ended + 100)}
		if got := a.unprovable(login); got != want {
			t.Errorf("ended after %v s: %t, want %t", ended, got, want)
		}
	}
}

// A login that had no turn before a newer login was proven is answered by that one's outcome,
// whatever was wrong with its tokens.
func TestALoginMayBeOvertakenByANewerOne(t *testing.T) {
	who := &person{provider: &standIn{id: strict}, name: "u"}
	login := func(sequence uint64, when float64, f fate) command {
		return command{
			who:      who,
			kind:     schema.UserLogin,
			sequence: sequence,
			accepted: at(when),
			fate:     f,
		}
	}
	bad := login(1, 1, rejected)
	for what, c := range map[string]struct {
		others []command
		want   bool
	}{
		"alone":           {nil, false},
		"a newer one":     {[]command{login(2, 2, "")}, true},
		"another bad one": {[]command{login(2, 2, rejected)}, false},
		"too late":        {[]command{login(2, 4, "")}, false},
	} {
		a := newAudit()
		a.people.commands = append(c.others, bad)
		if got := a.overtaken(bad, outcome{heard: at(3)}); got != c.want {
			t.Errorf("%s: %t", what, got)
		}
	}
}

func TestACommandIsAnsweredByTheRuleAlone(t *testing.T) {
	who := &person{provider: &standIn{id: strict}, name: "u"}
	asked := func(id, source, want string, when float64) command {
		return command{
			who:      who,
			id:       id,
			source:   source,
			want:     want,
			kind:     schema.UserRefreshDue,
			sent:     at(when),
			accepted: at(when + 0.01),
		}
	}
	synced := func(id, source string, began float64) outcome {
		return outcome{
			kind:      schema.UserSynced,
			provider:  strict,
			user:      "u",
			cause:     schema.Cause{ID: id, Source: source, Type: schema.UserRefreshDue},
			beganAt:   at(began),
			heard:     at(began + 0.1),
			expiresAt: at(50),
		}
	}
	timer := synced("timer-1", "/renewd", 5)
	timer.cause.Type, timer.refreshed = schema.CauseTimer, true
	fresh := synced("b", "/crm", 1.2)
	fresh.refreshed = true
	long := synced("b", "/crm", 1.2)
	long.expiresAt = at(62)
	failed := synced("b", "/crm", 1.2)
	failed.kind = schema.UserRefreshFailed
	refused := synced("b", "/crm", 1.2)
	refused.kind = schema.MessageRejected
	forgotten := synced("x", "/renewd/cli", 3)
	forgotten.kind = schema.UserForgotten
	profile, tokens := asked("a", "/crm", "", 1), asked("a", "/crm", schema.WantTokens, 1)
	newer, later := asked("b", "/crm", "", 1.1), asked("b", "/crm", "", 30)
	soon := asked("c", "/crm", "", 20)
	killed := &strike{worker: &worker{}, from: at(2), to: at(3)}
	for _, c := range []struct {
		name     string
		command  command
		other    []command
		outcomes []outcome
		strikes  []*strike
		want     bool
	}{
		{
			"by the outcome that names it", profile, nil, []outcome{synced("a", "/crm", 2)}, nil,
			true,
		},
		{
			"not by that of another source", profile, nil, []outcome{synced("a", "/billing", 2)},
			nil, false,
		},
		{
			"by that of a command whose acknowledgement got lost", profile, nil,
			[]outcome{synced("REQUESTS-7", "/nats", 4)}, []*strike{killed}, true,
		},
		{"not by a renewal that a timer made", profile, nil, []outcome{timer}, nil, false},
		{
			"by that of the command that took its place", profile, []command{newer},
			[]outcome{synced("b", "/crm", 1.2)}, nil, true,
		},
		{
			"not by one whose work began before it", asked("a", "/crm", "", 1.15), []command{newer},
			[]outcome{synced("b", "/crm", 1.12)}, nil, false,
		},
		{
			"not where that brought less than was wanted", tokens, []command{newer},
			[]outcome{synced("b", "/crm", 1.2)}, nil, false,
		},
		{"by one that rotated", tokens, []command{newer}, []outcome{fresh}, nil, true},
		{"by one with tokens of later", tokens, []command{newer}, []outcome{long}, nil, true},
		{"by a failure", tokens, []command{newer}, []outcome{failed}, nil, true},
		{
			"not by a rejection of the other", profile, []command{newer}, []outcome{refused}, nil,
			false,
		},
		{
			"not by a command of soon after", asked("a", "/crm", "", 16), []command{soon},
			[]outcome{synced("c", "/crm", 21)}, nil, false,
		},
		{
			"not by a command of long after", asked("a", "/crm", "", -20), []command{later},
			[]outcome{synced("b", "/crm", 31)}, nil, false,
		},
		{
			"but by it if work could not begin", asked("a", "/crm", "", 16), []command{later},
			[]outcome{synced("b", "/crm", 31)}, []*strike{killed}, true,
		},
		{
			"or if it was refused, and waited", profile, []command{soon},
			[]outcome{synced("c", "/crm", 21)}, nil, true,
		},
		{"by an erasure", profile, nil, []outcome{forgotten}, nil, true},
		{
			"not by an erasure of before", asked("a", "/crm", "", 4), nil, []outcome{forgotten},
			nil, false,
		},
	} {
		s := newAudit(c.strikes...).replies(c.outcomes, append(c.other, c.command))
		s.refused[who.key()] = []time.Time{at(15)}
		if got := s.answered(c.command); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestALoginIsTakenByAnErasureByItsOrderAlone(t *testing.T) {
	a := newAudit()
	a.people.swept["taken"] = true
	o := outcome{kind: schema.UserForgotten, beganAt: at(1), heard: at(3)}
	for id, want := range map[string]bool{"taken": true, "stays": false} {
		if got := a.took(o, command{id: id, kind: schema.UserLogin, sent: at(2)}); got != want {
			t.Errorf("%s: %t", id, got)
		}
	}
}

func TestAStormIsWhatNobodyAskedFor(t *testing.T) {
	var once, spinning []time.Time
	for i := range 30 {
		once = append(once, at(float64(i)))
		spinning = append(spinning, at(float64(i)/4))
	}
	a := newAudit()
	if text := a.storm(once, nil); text != "" {
		t.Errorf("once a floor: %s", text)
	}
	if a.storm(spinning, nil) == "" {
		t.Error("four times a floor is no storm")
	}
	if text := a.storm(spinning, spinning); text != "" {
		t.Errorf("each of them asked for: %s", text)
	}
}

// A token read that has a login proven is a command, whether the app got a token or not.
func TestAReadThatAsksForARenewalIsACommand(t *testing.T) {
	a := newAudit()
	x := aPerson("x")
	a.people.commands = []command{{who: x, kind: schema.UserLogin, sent: at(1)}}
	asked := outcome{
		kind: schema.UserSynced, provider: x.provider.id, user: x.name,
		cause: schema.Cause{ID: "r", Source: tokenReads, Time: at(2)},
	}
	timer := asked
	timer.cause = schema.Cause{ID: "t", Source: "/renewd", Time: at(3)}
	a.heard = []outcome{asked, timer, asked}
	want := []time.Time{at(1), at(2)}
	if got := a.sent()[x.key()]; !slices.EqualFunc(got, want, time.Time.Equal) {
		t.Errorf("commands at %v, want %v", got, want)
	}
}

// A timer set while the settings left a margin of less than a second may be late on a busy machine,
// and no other timer may.
func TestATimerOfASlimMarginMayBeLate(t *testing.T) {
	a := newAudit(&strike{kind: retuned, unfelt: true, from: at(10), to: at(20), healed: at(20)})
	for set, want := range map[float64]bool{9: false, 10: true, 19: true, 21: false} {
		if got := a.slim(at(set)) > 0; got != want {
			t.Errorf("set at %v: %t", set, got)
		}
	}
}

// A worker that stood still when the answer came, and died when it went on, has lost the answer.
func TestAnAnswerIsReadWhenTheWorkerGoesOn(t *testing.T) {
	w, other := &worker{}, &worker{}
	stalled := &strike{worker: w, frozen: true, from: at(0.9), to: at(5)}
	killed := &strike{worker: w, lost: true, from: at(5.1), to: at(5.1)}
	p := shown{Presentation: standin.Presentation{At: at(1)}, by: w}
	if !newAudit(stalled, killed).struck(p) {
		t.Error("not struck by the stall and the kill")
	}
	if newAudit(killed).struck(p) {
		t.Error("struck by a kill 4 s later alone")
	}
	if p.by = other; newAudit(stalled, killed).struck(p) {
		t.Error("struck by what befell another worker")
	}
}

// A pair that could be neither saved nor parked, while PostgreSQL hung and the streams had no
// leader yet, was lost with a worker that was killed seconds later.
func TestAPairThatHadNoPlaceIsLostWithItsWorker(t *testing.T) {
	by := &worker{}
	p := shown{by: by, Presentation: standin.Presentation{At: at(10), Took: time.Second}}
	killed := &strike{worker: by, lane: workerLane, lost: true, from: at(15), to: at(15)}
	hung := &strike{lane: serverLane, kind: "PostgreSQL hangs", from: at(9), to: at(16)}
	cut := &strike{lane: serverLane, kind: "NATS server cut off", from: at(2), to: at(7)}
	for name, tt := range map[string]struct {
		strikes []*strike
		want    bool
	}{
		"neither server":    {[]*strike{killed}, false},
		"only the database": {[]*strike{killed, hung}, false},
		"only the streams":  {[]*strike{killed, cut}, false},
		"both":              {[]*strike{killed, hung, cut}, true},
	} {
		if got := newAudit(tt.strikes...).struck(p); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// A presentation spends its own token. A replay of an earlier token spends p's token too, since its
// answer is newer.
func TestAReplaySpendsTheTokensBetween(t *testing.T) {
	p := &presentations{owners: &owners{}}
	for i, one := range []struct {
		generation int
		verdict    standin.Verdict
	}{
		{1, standin.Renewed},
		{1, standin.Replay},
		{1, standin.Unread},
		{1, standin.Replay},
		{3, standin.Reuse},
	} {
		p.all = append(p.all, shown{
			Presentation: standin.Presentation{
				Generation: one.generation,
				Verdict:    one.verdict,
				At:         at(float64(i)),
			},
		})
	}
	list := p.bySession()[0]
	// the login's token and its successor came before
	list[0].issued, list[1].issued, list[3].issued = 2, 3, 4
	reused := list[4]
	for i, want := range []bool{false, false, false, true} {
		if spends(list[i], reused) != want {
			t.Errorf("%d: spends token 3: %t", i, !want)
		}
	}
	if a := newAudit(); !a.spent(list[:4], reused).Equal(at(3)) {
		t.Errorf("spent at %v", a.spent(list[:4], reused))
	}
}

// The first call of a worker that stood still past its lease may come after another worker's call.
// Only the standstill lies between its last look at the claim and the call.
func TestAThawedWorkersCallIsExplained(t *testing.T) {
	w, other := &worker{}, &worker{}
	stalled := &strike{worker: w, frozen: true, lost: true, from: at(1), to: at(15)}
	for name, c := range map[string]struct {
		p    shown
		want bool
	}{
		"as it goes on": {
			shown{Presentation: standin.Presentation{At: at(15.1)}, by: w}, true,
		},
		"a second later": {
			shown{Presentation: standin.Presentation{At: at(16)}, by: w}, false,
		},
		"another worker's": {
			shown{Presentation: standin.Presentation{At: at(15.1)}, by: other}, false,
		},
		"before it stood still": {
			shown{Presentation: standin.Presentation{At: at(0.9)}, by: w}, false,
		},
	} {
		if got := newAudit(stalled).thawed(c.p); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// The same token at once, because its answer was lost, belongs to the same try.
func TestASecondCallOfOneTryIsNoStorm(t *testing.T) {
	w := &worker{}
	first := shown{
		Presentation: standin.Presentation{At: at(1), Took: 20 * time.Millisecond},
		by:           w,
	}
	again := shown{Presentation: standin.Presentation{At: at(1.1)}, by: w}
	later := shown{Presentation: standin.Presentation{At: at(2)}, by: w}
	other := shown{Presentation: standin.Presentation{At: at(1.1), Generation: 1}, by: w}
	if !again.again(first) || later.again(first) || other.again(first) {
		t.Errorf("%t %t %t", again.again(first), later.again(first), other.again(first))
	}
}

// What users or operators began, or a clock that is wrong, does not excuse a late renewal.
func TestOnlyWhatIsOutOfOrderExcuses(t *testing.T) {
	p := &standIn{id: strict}
	felt, unfelt := &strike{from: at(0), to: at(5)}, &strike{from: at(0), to: at(5), unfelt: true}
	elsewhere := &strike{provider: &standIn{id: graceful}, from: at(0), to: at(5)}
	if d := newAudit(unfelt, elsewhere).excuse(p, at(1), at(9)); d != 0 {
		t.Errorf("excused by %v", d)
	}
	if d := newAudit(felt).excuse(p, at(1), at(9)); d != 15*time.Second {
		t.Errorf("a server that was away for 5 s excuses %v", d)
	}
}
