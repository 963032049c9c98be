package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// reads compares the access tokens read by apps with the provider's truth, and with the outcomes
// heard by services until then.
func (a *audit) reads(r *readers) {
	short := a.count("access tokens read that had ended, or would before the time that was " +
		"asked for")
	foreign := a.count("access tokens read that are another user's, or none that the provider made")
	over := a.count("access tokens read of a session of which services had been told that it " +
		"is over")
	ends := a.ends()
	accepted := a.acceptedLogins()
	for _, t := range r.read {
		if !t.known || t.made.User != t.who.name {
			foreign.add("%s; made %t, of %q", t, t.known, t.made.User)
			continue
		}
		if t.endsEarly() {
			short.add("%s, in truth %s", t, t.made.Ends.Format(clockFormat))
		}
		login, known := accepted[fmt.Sprint(t.who.provider.id, t.made.Session)]
		for _, o := range ends[t.who.key()] {
			if o.heard.Before(t.sent) && o.ended(t, login, known) {
				over.add("%s; told %s at %s, version %d", t, o.kind, o.time.Format(clockFormat),
					o.version)
				break
			}
		}
		if t.door == doorHTTP {
			a.facts.ReadHTTP++
		} else {
			a.facts.ReadNATS++
		}
	}
	a.facts.ReadRefused, a.facts.ReadUnanswered = r.refused, r.unanswered
}

// clocks is how far renewd's clock may be from the providers', and tokens count whole seconds.
const clocks = time.Second

// endsEarly reports whether the token had ended when the app asked, or was to end before the least
// validity asked for, without a warning in the answer. The time counts from the question, since an
// answer may be late. The provider's word does not count for a token brought by a login, since
// renewd knows such a token's life only from the app.
func (t tokenRead) endsEarly() bool {
	least := t.sent.Add(-clocks)
	if t.short == "" {
		least = least.Add(t.want)
	}
	return t.ends.Before(least) || t.made.Generation > 0 && t.made.Ends.Before(least)
}

// ended reports whether o told of the end of the token's session. This is the end of the record at
// the token's version or a later version, or of all logins before an erasure.
func (o outcome) ended(t tokenRead, login time.Time, known bool) bool {
	if o.kind == schema.UserForgotten {
		return known && login.Before(o.beganAt)
	}
	return t.version <= o.version
}

// ends are the outcomes which told services of a session's end, by user.
func (a *audit) ends() map[string][]outcome {
	all := map[string][]outcome{}
	for _, o := range a.heard {
		if slices.Contains([]schema.Type{schema.UserReauthRequired, schema.UserForgotten}, o.kind) {
			all[o.provider+"/"+o.user] = append(all[o.provider+"/"+o.user], o)
		}
	}
	return all
}

// acceptedLogins is when the first login of each session was accepted, by provider and session.
func (a *audit) acceptedLogins() map[string]time.Time {
	first := map[string]time.Time{}
	for _, c := range a.people.commands {
		session := fmt.Sprint(c.who.provider.id, c.session)
		if at, known := first[session]; c.kind == schema.UserLogin &&
			(!known || c.accepted.Before(at)) {
			first[session] = c.accepted
		}
	}
	return first
}
