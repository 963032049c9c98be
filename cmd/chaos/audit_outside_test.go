package main

import (
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// The webhook is to have each outcome of the log, those of one user in their order. It may have
// some again, and some that an erasure took out of the log.
func TestWebhookIsHeldAgainstTheLog(t *testing.T) {
	told := func(id, user string) outcome {
		return outcome{id: id, kind: schema.UserSynced, provider: strict, user: user}
	}
	log := []outcome{told("a1", "a"), told("b1", "b"), told("a2", "a"), told("p1", ""),
		told("p2", "")}
	for name, c := range map[string]struct {
		got           []string
		missed, early int
	}{
		"all":             {[]string{"a1", "b1", "a2", "p1", "p2"}, 0, 0},
		"users beside":    {[]string{"b1", "a1", "a2", "p2", "p1"}, 0, 0},
		"again, and more": {[]string{"a1", "x", "a2", "a1", "b1", "p1", "p2"}, 0, 0},
		"one missing":     {[]string{"a1", "b1", "p1", "p2"}, 1, 0},
		"out of order":    {[]string{"a2", "a1", "b1", "p1", "p2"}, 0, 1},
	} {
		a := &audit{log: log, stopped: at(100)}
		a.webhook(c.got)
		if m, e := a.counts[0].Found, a.counts[1].Found; m != c.missed || e != c.early {
			t.Errorf("%s: %d missed and %d early, want %d and %d", name, m, e, c.missed, c.early)
		}
	}
}

// A row is to have the token of a live session, and none of another.
func TestTableIsHeldAgainstTheStore(t *testing.T) {
	yes, no, right, other := true, false, "t1", "t0"
	for name, c := range map[string]struct {
		status grant.Status
		erased bool
		row    rowOf
		wrong  int
	}{
		"live":                    {grant.Live, false, rowOf{&right, &no}, 0},
		"live, an older token":    {grant.Live, false, rowOf{&other, &no}, 1},
		"live, none":              {grant.Live, false, rowOf{nil, &no}, 1},
		"live, as signed out":     {grant.Live, false, rowOf{&right, &yes}, 1},
		"live, never written":     {grant.Live, false, rowOf{}, 1},
		"signed out":              {grant.ReauthRequired, false, rowOf{nil, &yes}, 0},
		"signed out, with token":  {grant.ReauthRequired, false, rowOf{&right, &yes}, 1},
		"signed out, as live":     {grant.ReauthRequired, false, rowOf{nil, &no}, 1},
		"erased":                  {grant.Forgotten, true, rowOf{nil, &yes}, 0},
		"erased, with a token":    {grant.Forgotten, true, rowOf{&right, &yes}, 1},
		"nothing is proven of it": {"", false, rowOf{}, 0},
	} {
		p := &standIn{id: strict}
		x := &person{provider: p, name: "u", accepted: true, erased: c.erased}
		g := grant.Grant{Status: c.status}
		if c.status == grant.Live {
			g.Pair.Access = secret.New(right)
		}
		a := &audit{people: &people{all: []*person{x}}, stopped: at(100),
			grants: map[string]grant.Grant{x.key(): g}}
		a.appsTable(map[string]rowOf{"u": c.row})
		if got := a.counts[0].Found; got != c.wrong {
			t.Errorf("%s: %d, want %d: %q", name, got, c.wrong, a.counts[0].Cases)
		}
	}
}
