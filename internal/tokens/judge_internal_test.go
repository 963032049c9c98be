package tokens

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// live is a grant whose pair renewd got itself, with this much left of 30 minutes.
func live(left time.Duration) grant.Grant {
	return grant.Grant{
		Key: grant.Key{Provider: "p", User: "u"}, Status: grant.Live, Version: 7,
		Pair: grant.Pair{
			Access: secret.New("access"), Refresh: secret.New("refresh"), Parent: "parent",
			ExpiresAt: now.Add(left), Lifetime: 30 * time.Minute,
		},
		LoginAt: now.Add(-time.Hour),
	}
}

func with(g grant.Grant, change func(*grant.Grant)) grant.Grant {
	change(&g)
	return g
}

// candidate is a login that the provider has not confirmed.
func candidate() *grant.Candidate {
	return &grant.Candidate{Pair: grant.Pair{
		Access: secret.New("candidate"), Refresh: secret.New("next"),
		ExpiresAt: now.Add(time.Hour), Lifetime: time.Hour,
	}}
}

func TestJudge(t *testing.T) {
	const unavailable = schema.ReasonProviderUnavailable
	failing := func(g *grant.Grant) {
		g.Outages, g.LastError = 1, unavailable
		g.FailedAt, g.NextDueAt = now.Add(-time.Second), now.Add(9*time.Second)
	}
	refused := func(g *grant.Grant) {
		g.Verdict = &grant.Verdict{Reason: schema.ReasonRevoked}
		g.LastError, g.FailedAt = schema.ReasonRevoked, now.Add(-time.Minute)
		g.NextDueAt = now.Add(40 * time.Second)
	}
	noAccess := func(g *grant.Grant) { g.Pair.Access = secret.Value{} }
	noRefresh := func(g *grant.Grant) { g.Pair.Refresh = secret.Value{} }
	status := func(s grant.Status, reason string) func(*grant.Grant) {
		return func(g *grant.Grant) {
			g.Status, g.LastError, g.FailedAt = s, reason, now.Add(-time.Minute)
		}
	}
	revoked := status(grant.ReauthRequired, schema.ReasonRevoked)
	login := func(g *grant.Grant) { g.Candidate = candidate() }
	throttled := func(g *grant.Grant) {
		g.Candidate.Outages, g.Candidate.LastError = 1, schema.ReasonThrottled
		g.Candidate.NextDueAt = now.Add(4 * time.Second)
	}
	for name, c := range map[string]struct {
		g      grant.Grant
		want   time.Duration
		short  string // beside a token
		code   string // beside none
		reason string
		retry  int
		ask    bool
	}{
		"good":               {g: live(10 * time.Minute), want: time.Minute},
		"good to the second": {g: live(time.Minute), want: time.Minute},
		"too short": {g: live(59 * time.Second),
			want: time.Minute, short: schema.ShortDelayed, ask: true},
		"any that lives": {g: live(time.Second), want: -1},
		"expired": {g: live(0),
			want: -1, code: schema.TokenTryAgain, retry: 1, ask: true},
		"more than it lives": {g: live(28 * time.Minute),
			want: time.Hour, short: schema.ShortCapped},
		"long, and had once": {g: live(26 * time.Minute),
			want: time.Hour, short: schema.ShortDelayed, ask: true},
		"nearly all, and young": {g: live(29 * time.Minute), want: 28 * time.Minute},
		"of a login": {g: with(live(28*time.Minute), func(g *grant.Grant) { g.Pair.Parent = "" }),
			want: time.Hour, short: schema.ShortDelayed, ask: true},
		"no access token": {g: with(live(time.Hour), noAccess),
			want: time.Minute, code: schema.TokenTryAgain, retry: 1, ask: true},

		"failing, lives": {g: with(live(30*time.Second), failing),
			want: time.Minute, short: schema.ShortDelayed},
		"failing, ended": {g: with(live(-time.Second), failing),
			want: time.Minute, code: schema.TokenTryAgain, reason: unavailable, retry: 9},
		"failed long ago": {g: with(with(live(-1), failing), func(g *grant.Grant) {
			g.FailedAt, g.NextDueAt = now.Add(-restMost), now.Add(time.Hour)
		}),
			want: 1, code: schema.TokenTryAgain, reason: unavailable, retry: 1, ask: true},
		"failing, good": {g: with(live(10*time.Minute), failing), want: time.Minute},
		"refused, lives": {g: with(live(30*time.Second), refused),
			want: time.Minute, short: schema.ShortDelayed},
		"refused, ended": {g: with(live(-time.Second), refused),
			want: time.Minute, code: schema.TokenTryAgain, reason: schema.ReasonRevoked, retry: 40},
		"retry is bounded": {g: with(with(live(-1), refused), func(g *grant.Grant) {
			g.NextDueAt = now.Add(time.Hour)
		}),
			want: 1, code: schema.TokenTryAgain, reason: schema.ReasonRevoked, retry: 300},
		"rest is over, ask": {g: with(with(live(-1), refused), func(g *grant.Grant) {
			g.NextDueAt = now
		}),
			want: 1, code: schema.TokenTryAgain, reason: schema.ReasonRevoked, retry: 1, ask: true},

		"no refresh token, lives": {g: with(live(30*time.Second), noRefresh),
			want: time.Minute, short: schema.ShortNoRefreshToken},
		"no refresh token, ended": {g: with(live(-time.Second), noRefresh),
			want: time.Minute, code: schema.TokenSignIn, reason: schema.ReasonNoRefreshToken},
		"no end": {g: with(with(live(0), noRefresh), func(g *grant.Grant) {
			g.Pair.ExpiresAt = time.Time{}
		}),
			want: time.Hour},
		"no refresh token, ended, and a login": {
			g:    with(with(live(-time.Second), noRefresh), login),
			want: time.Minute, code: schema.TokenTryAgain, retry: 1, ask: true,
		},

		"must sign in": {g: with(live(time.Hour), revoked),
			want: 1, code: schema.TokenSignIn, reason: schema.ReasonRevoked},
		"must sign in, and has": {g: with(with(live(time.Hour), revoked), login),
			want: 1, code: schema.TokenTryAgain, retry: 1, ask: true},
		"superseded": {g: with(live(time.Hour), status(grant.Suspended, schema.ReasonSuperseded)),
			want: 1, code: schema.TokenSuperseded, reason: schema.ReasonSuperseded},
		"suspended": {g: with(live(time.Hour), status(grant.Suspended, "")),
			want: 1, code: schema.TokenSuspended, reason: schema.ReasonSuspended},
		"signed out": {g: with(live(time.Hour), status("signed_out", "")),
			want: 1, code: schema.TokenSignedOut},
		"unknown status": {g: with(live(time.Hour), status("of a later version", "")),
			want: 1, code: schema.TokenSignIn},
		"forgotten": {g: with(live(time.Hour), status(grant.Forgotten, "")),
			want: 1, code: schema.TokenUnknownUser},
		"unproven": {g: with(live(time.Hour), status(grant.Unproven, "")),
			want: 1, code: schema.TokenUnknownUser},
		"unproven login": {g: with(grant.Grant{Status: grant.Unproven}, login),
			want: 1, code: schema.TokenTryAgain, retry: 1, ask: true},
		"login that fails": {g: with(with(grant.Grant{Status: grant.Unproven}, login), throttled),
			want: 1, code: schema.TokenTryAgain, reason: "throttled", retry: 4},
		"login beside what is proven": {g: with(live(10*time.Minute), login), want: time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(c.g, c.want, now)
			no := schema.NoToken{}
			if v.none != nil {
				no = *v.none
			}
			if v.token.Short != c.short || no.Code != c.code || no.Reason != c.reason {
				t.Errorf("short %q, none %+v", v.token.Short, no)
			}
			if no.RetryAfterSeconds != c.retry || v.ask != c.ask {
				t.Errorf("retry after %d, ask %v", no.RetryAfterSeconds, v.ask)
			}
			got := v.token.Access.Reveal()
			if (got == "access") != (c.code == "") || got == "candidate" {
				t.Errorf("access token %q with code %q", got, c.code)
			}
		})
	}
}

// Whatever a record holds, a token is handed out only if it is the proven one of a live grant and
// has not ended; else there is a reason.
func TestJudgeNeverGivesWhatIsNotProvenOrNotAlive(t *testing.T) {
	statuses := []grant.Status{
		grant.Live, grant.ReauthRequired, grant.Suspended, grant.Unproven, grant.Forgotten, "x",
	}
	r := rand.New(rand.NewPCG(1, 2))
	either := func() bool { return r.IntN(2) == 0 }
	at := func() time.Time { return now.Add(time.Duration(r.IntN(7)-3) * 10 * time.Minute) }
	given := 0
	for range 20_000 {
		g := live(at().Sub(now))
		g.Status = statuses[r.IntN(len(statuses))]
		g.NextDueAt, g.FailedAt, g.Outages = at(), at(), r.IntN(2)
		if either() {
			g.Candidate = candidate()
			g.Candidate.Attempts, g.Candidate.NextDueAt = r.IntN(2), at()
		}
		if either() {
			g.Pair.Refresh = secret.Value{}
		}
		if either() {
			g.Verdict = &grant.Verdict{Reason: schema.ReasonRevoked}
		}
		v := judge(g, at().Sub(now), now)
		access := v.token.Access.Reveal()
		switch has := access != ""; {
		case has == (v.none != nil):
			t.Fatalf("token %v and reason %+v of %+v", has, v.none, g)
		case has && (g.Status != grant.Live || !g.Pair.ExpiresAt.After(now) || access != "access"):
			t.Fatalf("a token of %+v", g)
		case has:
			given++
		}
	}
	if given == 0 {
		t.Error("no token was given at all")
	}
}

func TestFirstReads(t *testing.T) {
	var s readers
	a := read{DoorHTTP, "shop", "p", "u", 1}
	if !s.first(a) || s.first(a) {
		t.Error("a read is the first one once")
	}
	for _, other := range []read{
		{DoorHTTP, "shop", "p", "u", 2}, {DoorHTTP, "mail", "p", "u", 1},
		{DoorHTTP, "shop", "p", "v", 1}, {DoorNATS, "shop", "p", "u", 1},
	} {
		if !s.first(other) {
			t.Errorf("%v was not read before", other)
		}
	}
	for i := range 3 * readersKept {
		s.first(read{DoorHTTP, "crowd", "p", "u", int64(i)})
	}
	if n := len(s.now) + len(s.old); n > 2*readersKept {
		t.Errorf("%d reads are remembered", n)
	}
}
