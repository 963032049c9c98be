package grant

import (
	"cmp"
	"slices"
	"time"

	"github.com/renewd/renewd/schema"
)

// LogoutArrives is the meaning of a logout at this place to g, as stored. Fresh: the logout ends
// the earlier logins in g. Stored: the logout was carried out, and was delivered again. Outdated: a
// newer login was proven, or a newer logout was carried out, and the logout changes nothing.
func (g *Grant) LogoutArrives(place Position) Arrival {
	switch {
	case g.Login.Stream.Equal(place.Stream) && g.Login.Sequence == place.Sequence:
		return Stored
	case !g.Login.Before(place):
		return Outdated
	}
	return Fresh
}

// LoggedOut is g after the logout of t's work, which is Fresh and has this place. The tokens of
// earlier logins are dropped, with everything known of the tokens; everything known of the user
// stays. Earlier unproven logins are owed a rejection. A later login has its turn as usual. revoked
// and problem are the Revoked and RevokeError of the outcome. NextDueAt stays set until Told, so
// that the reconciler finds a grant whose outcome was not told yet.
func (g Grant) LoggedOut(t Turn, place Position, revoked bool, problem string) Grant {
	g = g.AsStored()
	g.change(t)
	g.turn(t, Synced)
	g = g.withoutLogins(place, "the user signed out before it was proven")
	g.Status, g.Pair, g.Verdict, g.Doubt = SignedOff, Pair{}, nil, nil
	g.Attempts, g.Outages, g.LastError, g.ToldAlone = 0, 0, "", false
	g.FailingSince = time.Time{}
	g.Refreshed, g.Recovered = false, false
	// The place alone: a login published again later is still recognised by the rest.
	g.Login.Stream, g.Login.Sequence, g.Login.Time = place.Stream, place.Sequence, place.Time
	g.NextDueAt = t.Now
	g.Pending = g.pending(schema.UserSignedOut, schema.SignedOut{
		Cause: g.Cause, BeganAt: g.BeganAt, Version: g.Version, Reason: g.Cause.Reason,
		Revoked: revoked, RevokeError: problem,
	})
	return g
}

// withoutLogins is g without the unproven logins up to this place. Each dropped login is owed a
// rejection that says why.
func (g Grant) withoutLogins(place Position, why string) Grant {
	var newer []Candidate
	for _, c := range g.Candidate.all() {
		if place.Before(c.Login) {
			newer = append(newer, c)
			continue
		}
		g.Owed = append(slices.Clip(g.Owed), g.owed(c, why)...)
	}
	g.Candidate = chained(newer)
	return g
}

// ToldAt lists the ids of the published outcomes in g, where all outcomes decided up to the state
// of m are published.
func (g *Grant) ToldAt(m Mark) (ids []string) {
	if p := g.Pending; p != nil {
		decided := cmp.Or(p.Version, g.Version) // a version of 0: from before records kept it
		if decided <= m.Version || g.Resting() {
			ids = append(ids, p.ID)
		}
	}
	for _, p := range g.Owed {
		if p.Version > 0 && p.Version <= m.Version {
			ids = append(ids, p.ID)
		}
	}
	return ids
}
