package main

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// What is read is held against the provider's truth, and against what services had heard before.
func TestATokenIsReadByTheRuleAlone(t *testing.T) {
	p := &standIn{id: strict}
	who := &person{provider: p, name: "u"}
	told := func(kind schema.Type, version int64, began, heard float64) outcome {
		return outcome{
			kind:     kind,
			provider: strict,
			user:     "u",
			version:  version,
			beganAt:  at(began),
			heard:    at(heard),
		}
	}
	// The third renewal of the session, asked for at 10 and good until 60.
	good := tokenRead{
		who:     who,
		door:    doorHTTP,
		sent:    at(10),
		want:    20 * time.Second,
		version: 7,
		ends:    at(60),
		known:   true,
		made:    standin.Issued{User: "u", Session: 4, Generation: 3, Ends: at(60)},
	}
	for name, c := range map[string]struct {
		change func(*tokenRead)
		heard  []outcome
		short  int
		other  int
		over   int
	}{
		"good":          {func(*tokenRead) {}, nil, 0, 0, 0},
		"good for less": {func(r *tokenRead) { r.ends = at(28) }, nil, 1, 0, 0},
		"good for less, which it says": {
			func(r *tokenRead) { r.ends, r.short = at(28), "delayed" }, nil, 0, 0, 0,
		},
		"ended, which it says": {
			func(r *tokenRead) { r.ends, r.short = at(8), "delayed" }, nil, 1, 0, 0,
		},
		"in truth good for less": {
			func(r *tokenRead) { r.made.Ends = at(28) }, nil, 1, 0, 0,
		},
		"of a login, told by its app": {
			func(r *tokenRead) { r.made.Ends, r.made.Generation = at(28), 0 }, nil, 0, 0, 0,
		},
		"another user's": {func(r *tokenRead) { r.made.User = "v" }, nil, 0, 1, 0},
		"never made":     {func(r *tokenRead) { r.known = false }, nil, 0, 1, 0},
		"told over before": {
			func(*tokenRead) {}, []outcome{told(schema.UserReauthRequired, 7, 8, 9)}, 0, 0, 1,
		},
		"told over since": {
			func(*tokenRead) {}, []outcome{told(schema.UserReauthRequired, 8, 8, 11)}, 0, 0, 0,
		},
		"of a login since": {
			func(*tokenRead) {}, []outcome{told(schema.UserReauthRequired, 6, 8, 9)}, 0, 0, 0,
		},
		"erased before": {
			func(*tokenRead) {}, []outcome{told(schema.UserForgotten, 0, 5, 9)}, 0, 0, 1,
		},
		"signed in during the erasure": {
			func(*tokenRead) {}, []outcome{told(schema.UserForgotten, 0, 1, 9)}, 0, 0, 0,
		},
		"renewed, and nothing told of it": {
			func(*tokenRead) {}, []outcome{told(schema.UserSynced, 9, 5, 9)}, 0, 0, 0,
		},
	} {
		a := newAudit()
		a.heard = c.heard
		a.people.commands = []command{
			{who: who, kind: schema.UserLogin, session: 4, accepted: at(2)},
		}
		one := good
		c.change(&one)
		a.reads(&readers{read: []tokenRead{one}})
		if got := [...]int{
			a.counts[0].Found, a.counts[1].Found, a.counts[2].Found,
		}; got != [...]int{c.short, c.other, c.over} {
			t.Errorf("%s: %v", name, got)
		}
	}
}
