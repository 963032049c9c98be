package main

import (
	"context"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// outside checks the data of the app to which sinks bring the outcomes.
func (a *audit) outside(ctx context.Context) {
	a.webhook(a.world.outside.got)
	untaken := a.count("logins in the app's table that renewd did not take")
	for _, key := range a.people.untaken {
		untaken.add("%s", key)
	}
	if a.world.outside.database == "" {
		return
	}
	rows, err := a.world.outside.rows(ctx)
	if err != nil {
		a.schedule.errs = append(a.schedule.errs, err)
	}
	a.appsTable(rows)
}

// webhook compares the outcomes at the webhook, in the order of their first arrival, with the log.
func (a *audit) webhook(got []string) {
	missed := a.count("outcomes in the log that the app's webhook never got")
	early := a.count("outcomes that the app's webhook got before an earlier one of the same user")
	place := map[string]int{}
	for i, id := range got {
		if _, again := place[id]; !again {
			place[id] = i
		}
	}
	last := map[string]outcome{}
	for _, o := range a.log {
		at, came := place[o.id]
		if !came && a.recent(o.time) {
			continue
		}
		if !came {
			missed.add("%s of %s/%s", o.kind, o.provider, o.user)
			continue
		}
		key := o.provider + "/" + o.user
		if before, ok := last[key]; ok && o.user != "" && at < place[before.id] {
			early.add("%s: %s before %s", key, o.kind, before.kind)
		}
		last[key] = o
	}
	a.facts.Brought = len(got)
}

// recent reports whether an outcome came so shortly before the workers were stopped that a sink may
// not have brought the outcome.
func (a *audit) recent(at time.Time) bool { return at.After(a.stopped.Add(-bringing)) }

// appsTable compares the app's table with the store.
func (a *audit) appsTable(rows map[string]rowOf) {
	told := map[string]time.Time{} // when each user's last outcome was published
	for _, o := range a.log {
		told[o.provider+"/"+o.user] = o.time
	}
	wrong := a.count("users whose row in the app's table says another thing than the store")
	for _, x := range a.people.all {
		g := a.grants[x.key()]
		r, there := rows[x.name]
		want, out := "", true
		switch {
		case x.unsure, !x.accepted && !x.erased, a.recent(told[x.key()]):
			continue
		case !x.erased && !signedIn(g): // no login was proven
			continue
		case !x.erased && g.Status == grant.Live:
			want, out = g.Pair.Access.Reveal(), false
		}
		switch {
		case !there:
			wrong.add("%s of %s has no row", x.name, x.provider.id)
		case want == "" && r.token != nil:
			wrong.add("%s of %s has a token, and is %s", x.name, x.provider.id, condition(g))
		case want != "" && (r.token == nil || *r.token != want):
			wrong.add("%s of %s has another token than the store, or none; %s", x.name,
				x.provider.id, condition(g))
		case r.signedOut != nil && *r.signedOut != out, r.signedOut == nil && !out:
			wrong.add("%s of %s is signed out in the row: %t; %s", x.name, x.provider.id, !out,
				condition(g))
		}
	}
}
