package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// outcomes checks the log by itself, and compares the log with the outcomes heard by a subscriber.
func (a *audit) outcomes() {
	twice := a.count("outcome ids stored twice")
	unheard := a.count("outcomes in the log that a subscriber never heard of")
	stored := map[string][]string{}
	said := map[string]schema.Type{}
	for _, o := range a.log {
		stored[o.id] = append(stored[o.id], fmt.Sprintf("%s at %s", o.kind,
			o.time.Format(clockFormat)))
		said[o.id] = o.kind
	}
	for id, all := range stored {
		if len(all) > 1 {
			twice.add("%s: %s", id, strings.Join(all, ", "))
		}
		if !a.ids[id] {
			unheard.add("%s", id)
		}
	}
	a.facts.Outcomes = len(stored)
	unpublished := a.count("outcomes that were decided and stored, but never published")
	for key, g := range a.grants {
		if g.Pending != nil && said[g.Pending.ID] != g.Pending.Type {
			unpublished.add("%s: %s for %s %s; under its id there is %q", key, g.Pending.Type,
				g.Cause.Type, g.Cause.ID, said[g.Pending.ID])
		}
	}
}

// lastWord is the last outcome about whether a user is signed in, for each user.
func (a *audit) lastWord() map[string]outcome {
	last := map[string]outcome{}
	for _, o := range a.log {
		if slices.Contains(
			[]schema.Type{schema.UserSynced, schema.UserReauthRequired, schema.UserForgotten},
			o.kind,
		) {
			last[o.provider+"/"+o.user] = o
		}
	}
	return last
}

// agreement compares the provider's truth and the store with the last word to services.
func (a *audit) agreement() {
	store := a.count("users of whom the last outcome says another thing than the store")
	truth := a.count("users of whom the last outcome says another thing than the provider")
	last := a.lastWord()
	for _, x := range a.people.all {
		if x.unsure || !x.accepted {
			continue
		}
		o, g := last[x.key()], a.grants[x.key()]
		want := map[grant.Status]schema.Type{
			grant.Live:           schema.UserSynced,
			grant.ReauthRequired: schema.UserReauthRequired,
		}[g.Status]
		switch {
		case x.erased:
			want = schema.UserForgotten
		case x.bare && want == schema.UserReauthRequired && g.Verdict != nil &&
			g.Verdict.Reason != schema.ReasonNoRefreshToken && x.provider.Live(x.name):
			truth.add("%s of %s: %s, and the provider honours the session", x.name, x.provider.id,
				g.Verdict.Reason)
		}
		if want != "" && o.kind != want {
			store.add("%s of %s: %q, and the store says %s; %s", x.name, x.provider.id, o.kind,
				condition(g), a.said(x.provider.id, x.name))
		}
		if x.bare || x.erased || a.held(x, g) || a.onOlder(x, g) ||
			!signedIn(g) && a.unprovable(x.login) {
			continue
		}
		if ended := !x.provider.Live(x.name); ended != (o.kind == schema.UserReauthRequired) {
			truth.add("%s of %s: %q, session ended: %t; %s", x.name, x.provider.id, o.kind, ended,
				a.said(x.provider.id, x.name))
		}
	}
}

// traces looks for data left of erased people who did not sign in again, by the order of LOGINS.
func (a *audit) traces(ctx context.Context) {
	left := a.count("messages left in a stream of people who were erased")
	shown := a.count("outcomes after user.forgotten that show the profile of somebody who " +
		"was erased")
	alive := a.count("people who were erased whose session the provider still honours, where it " +
		"can be told")
	for _, x := range a.people.all {
		if !x.erased || x.unsure {
			continue
		}
		for name, subjects := range map[string][]string{
			topology.Logins:   {x.loginSubject(), x.outsideSubject()},
			topology.Requests: {x.subject(schema.UserRefreshDue)},
			topology.Parked:   {x.subject("parked")},
			topology.Renewals: x.renewals(),
		} {
			for _, subject := range subjects {
				if m := a.newest(ctx, name, subject); m != nil {
					left.add("%s: %s since %s for %s, erased from %s to %s", name, subject,
						m.Time.Local().Format(clockFormat), m.Header.Get("ce-id"),
						x.erasing[0].Format(clockFormat), x.erasing[1].Format(clockFormat))
				}
			}
		}
		onItsWay := x.login.accepted.After(x.erasing[0]) // dropped unopened: no token to revoke
		if !x.bare && !x.provider.grace && !onItsWay && x.provider.Live(x.name) &&
			a.trouble(x.provider, x.erasing[0], x.erasing[1]) == 0 {
			alive.add("%s of %s, erased from %s to %s", x.name, x.provider.id,
				x.erasing[0].Format(clockFormat), x.erasing[1].Format(clockFormat))
		}
	}
	forgotten := map[string]bool{}
	for _, o := range a.log {
		key := o.provider + "/" + o.user
		if o.kind == schema.UserForgotten {
			forgotten[key] = true
		}
		if x := a.people.byName[key]; x != nil && x.erased && !x.unsure && forgotten[key] &&
			(o.profile || o.kind == schema.UserSynced) {
			shown.add("%s: %s %s for %s", key, o.kind, o.id, o.cause.Type)
		}
	}
}

// newest is the last message of a subject, or nil if the subject has no message.
func (a *audit) newest(ctx context.Context, name, subject string) *jetstream.RawStreamMsg {
	s, err := a.world.js.Stream(ctx, name)
	if err != nil {
		return nil
	}
	m, err := s.GetLastMsgForSubject(ctx, subject)
	if err != nil {
		return nil
	}
	return m
}

// repeatsHarmless checks that no spent token was presented because a login was published again.
func (a *audit) repeatsHarmless() {
	c := a.count("spent tokens presented because their login was published again")
	for _, r := range a.people.repeats {
		for _, shown := range r.who.provider.seen.list() {
			if shown.Session == r.session && shown.Generation == 0 && shown.At.After(r.at) &&
				shown.Verdict != standin.Renewed {
				c.add("%s session %d of %s: %s at %s", r.who.provider.id, r.session, r.who.name,
					shown.Verdict, shown.At.Format(clockFormat))
			}
		}
	}
}
