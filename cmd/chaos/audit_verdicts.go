package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// verdicts checks the users told to sign in again, and the users who lost their tokens and were not
// told.
func (a *audit) verdicts(w *witness) {
	wrong := a.count("user.reauth_required for a user whose session the provider still honours, " +
		"or whose access token was good, or told twice")
	for _, text := range w.wrong {
		wrong.add("%s", text)
	}
	reasons := a.count("sessions lost with a worker that were not answered by rotation_lost or a " +
		"newer login")
	sessions := a.world.providers[strict].seen.bySession()
	for _, list := range sessions {
		for i, p := range list {
			if p.Verdict != standin.Reuse || a.explain(list[:i], p) == "" {
				continue
			}
			told := slices.ContainsFunc(a.heard, func(o outcome) bool {
				return o.provider == strict && o.user == p.User && o.time.After(p.At) &&
					(o.kind == schema.UserReauthRequired && o.reason == schema.ReasonRotationLost ||
						o.cause.Type == schema.UserLogin || o.kind == schema.UserForgotten)
			})
			x := a.people.byName[strict+"/"+p.User]
			if x == nil || a.held(x, a.grants[x.key()]) {
				continue // x is nil for a user without a grant: the tokens came in another's login
			}
			if !told && !renewedAnew(sessions, p) {
				reasons.add("%s at %s: %s; %s", p.User, p.At.Format(clockFormat),
					a.said(strict, p.User), condition(a.grants[strict+"/"+p.User]))
			}
		}
	}
}

// condition tells how far a grant has come, without its tokens.
func condition(g grant.Grant) string {
	return fmt.Sprintf("grant is %s, version %d of %s, next %s, attempts %d, outages %d, last "+
		"error %q, verdict %+v, doubt %+v, claim %+v, pending %t",
		g.Status, g.Version, g.RefreshedAt.Format(clockFormat), g.NextDueAt.Format(clockFormat),
		g.Attempts, g.Outages, g.LastError, g.Verdict, g.Doubt, g.Claim, g.Pending != nil)
}

// renewedAnew reports whether a later session of the user was renewed after p, so the user signed
// in again. The outcome of a request may have told of the new session before the login's outcome.
func renewedAnew(sessions map[int][]shown, p shown) bool {
	for _, list := range sessions {
		renewed := func(q shown) bool { return q.Verdict == standin.Renewed && q.At.After(p.At) }
		if list[0].User == p.User && list[0].Session > p.Session &&
			slices.ContainsFunc(list, renewed) {
			return true
		}
	}
	return false
}

// held reports whether a person signed out with most other users has not been told yet. While most
// users of a provider are refused, no refusal is believed.
func (a *audit) held(x *person, g grant.Grant) bool {
	refused := g.Status == grant.Live && g.Verdict != nil &&
		g.LastError == schema.ReasonMassFailure && !x.provider.Live(x.name)
	return refused &&
		slices.ContainsFunc(a.schedule.strikes, func(s *strike) bool {
			return s.kind == massSignOut && s.provider == x.provider
		})
}

// said lists the last outcomes heard of a user.
func (a *audit) said(provider, user string) string {
	var all []string
	for _, o := range a.heard {
		if o.provider == provider && o.user == user {
			all = append(all, fmt.Sprintf("%s %s %s for %s %s of %s, refreshed %t, began %s, "+
				"until %s", o.time.Format(clockFormat), o.kind, o.reason,
				o.cause.Type, o.cause.ID, o.cause.Source, o.refreshed,
				o.beganAt.Format(clockFormat), o.expiresAt.Format(clockFormat)))
		}
	}
	const most = 8
	return strings.Join(all[max(0, len(all)-most):], "; ")
}
