package grant_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

func TestATimerIsArmedByOneRuleOfPrecedence(t *testing.T) {
	base := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return base.Add(time.Duration(s) * time.Second) }
	timer := func(id string, due int, version int64) grant.Timer {
		return grant.Timer{
			At: at(due),
			Work: grant.Work{
				Cause: schema.Cause{ID: id, Type: schema.CauseTimer},
				Mark:  grant.Mark{Version: version},
			},
		}
	}
	command := func(id string, due, asked int, version int64) grant.Timer {
		c := timer(id, due, version)
		c.Work.Cause.Type, c.Work.Cause.Time = schema.UserRefreshDue, at(asked)
		return c
	}
	login := func(id string, due, asked int) grant.Timer {
		c := command(id, due, asked, 0)
		c.Work.Cause.Type = schema.UserLogin
		return c
	}
	wants := func(t grant.Timer, want string, valid time.Duration) grant.Timer {
		t.Work.Want, t.Work.MinValid = want, valid
		return t
	}
	put := func(t grant.Timer, due int, version int64) grant.Timer {
		t.At, t.Work.Mark.Version = at(due), version
		return t
	}
	renamed := timer("", 3, 6)
	renamed.Work = renamed.Work.PutOff(at(3))
	again := command("r1", 3, 0, 5)
	again.Work.Deferrals = 2
	for name, c := range map[string]struct{ there, armed, want grant.Timer }{
		"an earlier timer replaces a later one": {
			timer("a", 9, 5), timer("b", 3, 5), timer("b", 3, 5),
		},
		"a later timer leaves an earlier one": {
			timer("a", 3, 5), timer("b", 9, 5), timer("a", 3, 5),
		},
		"one of a newer record takes its place": {timer("a", 3, 5), timer("b", 9, 6), renamed},
		"a timer of an older record gives way": {
			timer("a", 9, 6), timer("b", 3, 5), timer("a", 9, 6),
		},
		"one made without a record gives way": {
			timer("a", 9, 6), timer("b", 3, 0), timer("a", 9, 6),
		},
		"a command outlives a later timer": {
			command("r", 3, 0, 5), timer("b", 9, 6), command("r", 3, 0, 6),
		},
		"and is done at the time of an earlier one": {
			command("r", 9, 0, 5), timer("b", 3, 6), command("r", 3, 0, 6),
		},
		"a command takes a timer's place": {
			timer("a", 9, 5), command("r", 3, 0, 5), command("r", 3, 0, 5),
		},
		"and its earlier time": {
			timer("a", 3, 6), command("r", 9, 0, 5), command("r", 3, 0, 6),
		},
		"the newer of two commands names the outcome": {
			wants(command("r1", 9, 0, 5), schema.WantTokens, time.Minute),
			wants(command("r2", 3, 1, 6), "", time.Hour),
			wants(command("r2", 3, 1, 6), schema.WantTokens, time.Hour),
		},
		"also when the older is armed after it": {
			wants(command("r2", 9, 1, 6), "", time.Hour),
			wants(command("r1", 3, 0, 5), schema.WantTokens, time.Minute),
			put(wants(command("r2", 0, 1, 0), schema.WantTokens, time.Hour), 3, 6),
		},
		"a request outlives a newer login": {
			command("r", 3, 0, 5), login("l", 9, 1), put(command("r", 0, 0, 0), 3, 5),
		},
		"and takes the place of an older one": {
			login("l", 3, 0), command("r", 9, 1, 5), put(command("r", 0, 1, 0), 3, 5),
		},
		"a login takes a timer's place": {
			timer("a", 9, 0), login("l", 3, 1), login("l", 3, 1),
		},
		"the same command counts its deferrals": {command("r1", 3, 0, 5), again, again},
		"and never back":                        {again, command("r1", 9, 0, 5), again},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.armed.Over(c.there); got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestCoveredWorkWantsNoMore(t *testing.T) {
	w := grant.Work{Want: schema.WantTokens, MinValid: time.Minute, Mark: grant.Mark{Version: 7}}
	for name, c := range map[string]struct {
		o    grant.Work
		want bool
	}{
		"nothing":        {grant.Work{}, true},
		"the same":       {w, true},
		"a profile":      {grant.Work{Want: schema.WantProfile}, true},
		"longer tokens":  {grant.Work{MinValid: time.Hour}, false},
		"a newer record": {grant.Work{Mark: grant.Mark{Version: 8}}, false},
	} {
		if got := w.Covers(c.o); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
