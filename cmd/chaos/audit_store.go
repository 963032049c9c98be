package main

import (
	"context"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// store compares each person's grant with the session honoured by the provider.
func (a *audit) store(ctx context.Context) {
	silent := a.count("live grants whose refresh token the provider would not take")
	gone := a.count("people told to sign in again whose session the provider still honours")
	older := a.count("live grants of another session than the newest login's")
	back := a.count("erased users that came back")
	missing := a.count("people signed in without a grant")
	timers := a.count("live grants without a timer")
	parked := a.count("pairs still parked")
	for _, x := range a.people.all {
		g := a.grants[x.key()]
		stored := signedIn(g)
		current := x.provider.CurrentRefresh(x.name)
		switch {
		case x.unsure && !stored:
		case x.erased &&
			(stored || g.Profile != "" || !g.Pair.Access.IsZero() || !g.Pair.Refresh.IsZero()):
			back.add("%s, version %d, %s", x.name, g.Version, g.Status)
		case x.erased, !x.accepted:
		case !stored && (a.unprovable(x.login) || a.displaced(x)): // nothing was proven before
		case !stored:
			missing.add("%s of %s, signed in at %s; %s; %s", x.name, x.provider.id,
				x.opened.Format(clockFormat), condition(g), a.said(x.provider.id, x.name))
		case x.bare, a.held(x, g), a.onOlder(x, g):
		case g.Status == grant.ReauthRequired && current != "":
			gone.add("%s of %s: %s", x.name, x.provider.id, g.LastError)
		case g.Status == grant.Live && !x.provider.Valid(g.Pair.Refresh.Reveal()):
			silent.add("%s of %s: last error %q, next %s", x.name, x.provider.id, g.LastError,
				g.NextDueAt.Format(clockFormat))
		case g.Status == grant.Live && g.Pair.Refresh.Reveal() != current:
			older.add("%s of %s", x.name, x.provider.id)
		}
		if stored && g.Status == grant.Live && !a.waits(ctx, x) {
			timers.add("%s, next due %s", g.Key, g.NextDueAt.Format(clockFormat))
		}
	}
	if s, err := a.world.js.Stream(ctx, topology.Parked); err == nil {
		a.parked(ctx, s, parked)
	}
}

// displaced reports whether a login with another's tokens took the place of a person's newest login
// while both were put off, since the store or the streams were away: of the logins put off RENEWALS
// keeps the newest of a user. A login is put off after five tries, a second apart.
func (a *audit) displaced(x *person) bool {
	return slices.ContainsFunc(a.people.commands, func(c command) bool {
		return c.who == x && c.fate == rejected && c.sequence > x.login.sequence &&
			a.trouble(x.provider, x.login.accepted.Add(-patience), c.accepted.Add(patience)) >
				5*time.Second
	})
}

// signedIn reports whether the grant holds more than the place of its logins.
func signedIn(g grant.Grant) bool { return g.Status != "" && g.Status != grant.Forgotten }

// waits reports whether work for the person waits in RENEWALS.
func (a *audit) waits(ctx context.Context, x *person) bool {
	return slices.ContainsFunc(x.renewals(), func(subject string) bool {
		return a.newest(ctx, topology.Renewals, subject) != nil
	})
}

// parked looks for parked pairs which were never fetched. A pair older than the store's is
// outdated, and the reconciler removes outdated pairs.
func (a *audit) parked(ctx context.Context, s jetstream.Stream, c *count) {
	for next := s.CachedInfo().State.FirstSeq; ; {
		m, err := s.GetMsg(ctx, next, jetstream.WithGetMsgSubject("parked.>"))
		if err != nil {
			return // the end of the stream
		}
		next = m.Sequence + 1
		for _, g := range a.grants {
			if m.Subject == "parked."+g.Provider+"."+schema.EscapeUser(g.User) &&
				m.Header.Get("renewd-parent") == g.Fingerprint() {
				c.add("%s since %s", m.Subject, m.Time.Local().Format(clockFormat))
			}
		}
	}
}
