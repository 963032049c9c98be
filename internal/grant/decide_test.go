package grant_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

var (
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	policy = new(grant.Policy{}.WithDefaults())
	key    = grant.Key{Provider: "propelauth", User: "u17"}
	due    = schema.Cause{ID: "timer-1-1", Type: schema.CauseTimer, Time: noon}
	asked  = schema.Cause{ID: "r1", Type: schema.UserRefreshDue, Source: "/billing", Time: noon}
)

// live is a grant whose access token lives 30 minutes and has left to go at noon.
func live(left time.Duration) grant.Grant {
	return grant.Grant{
		Key: key, Revision: 7, Version: 100, Status: grant.Live,
		Pair: grant.Pair{
			Access:    secret.New("access-0"),
			Refresh:   secret.New("refresh-0"),
			Lifetime:  30 * time.Minute,
			ExpiresAt: noon.Add(left),
			SentAt:    noon.Add(left - 30*time.Minute),
		},
		RefreshedAt: noon.Add(left - 30*time.Minute), NextDueAt: noon.Add(left - 5*time.Minute),
		Profile: profile(schema.Profile{ID: "u17", Email: "jane@example.com"}),
	}
}

func turn(c schema.Cause, now time.Time) grant.Turn {
	return grant.Turn{
		Work:    grant.Work{Cause: c},
		Nonce:   "n1",
		BeganAt: now,
		Now:     now,
		Draw:    0.5,
		Policy:  policy,
	}
}

func TestDecide(t *testing.T) {
	with := func(g grant.Grant, change func(*grant.Grant)) grant.Grant { change(&g); return g }
	noRefresh := func(g *grant.Grant) { g.Pair.Refresh = secret.Value{} }
	fingerprint := new(live(0)).Fingerprint()
	for _, tt := range []struct {
		name string
		g    grant.Grant
		w    grant.Work
		want grant.Step
	}{
		{
			"a timer near expiry rotates",
			live(4 * time.Minute),
			grant.Work{Cause: due},
			grant.Refresh,
		},
		{
			"a timer a second early still rotates",
			live(8*time.Minute + time.Second),
			grant.Work{Cause: due},
			grant.Refresh,
		},
		{
			"a request with a good token syncs the profile only",
			live(20 * time.Minute),
			grant.Work{Cause: asked},
			grant.Sync,
		},
		{
			"an expired token is not tried first",
			live(-time.Hour),
			grant.Work{Cause: asked},
			grant.Refresh,
		},
		{
			"want tokens rotates now",
			live(20 * time.Minute),
			grant.Work{Cause: asked, Want: schema.WantTokens},
			grant.Refresh,
		},
		{
			"min_valid more than what is left rotates",
			live(20 * time.Minute),
			grant.Work{Cause: asked, MinValid: 25 * time.Minute},
			grant.Refresh,
		},
		{
			"min_valid less than what is left does not",
			live(20 * time.Minute),
			grant.Work{Cause: asked, MinValid: 15 * time.Minute},
			grant.Sync,
		},
		{
			"not twice within the floor",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.RefreshedAt = noon.Add(-time.Second)
			}),
			grant.Work{Cause: asked, Want: schema.WantTokens},
			grant.Sync,
		},
		{
			"an unknown presentation is cleared up at once",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Claim = &grant.Claim{Nonce: "dead", Fingerprint: fingerprint, Presented: true}
			}),
			grant.Work{Cause: asked},
			grant.Refresh,
		},
		{
			"a claim on a token that is gone says nothing",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Claim = &grant.Claim{Nonce: "dead", Fingerprint: "older", Presented: true}
			}),
			grant.Work{Cause: asked},
			grant.Sync,
		},
		{
			"doubt is cleared up",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Doubt = &grant.Doubt{Fingerprint: fingerprint}
			}),
			grant.Work{Cause: due},
			grant.Refresh,
		},
		{
			"a refusal waits for its confirm time",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Verdict = &grant.Verdict{At: noon.Add(-10 * time.Second)}
			}),
			grant.Work{Cause: asked},
			grant.Sync,
		},
		{
			"a refusal is confirmed when it is time",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Verdict = &grant.Verdict{At: noon.Add(-40 * time.Second)}
			}),
			grant.Work{Cause: due},
			grant.Refresh,
		},
		{
			"no refresh token: the user keeps what is left",
			with(live(4*time.Minute), noRefresh),
			grant.Work{Cause: asked},
			grant.Sync,
		},
		{
			"no refresh token and expired",
			with(live(0), noRefresh),
			grant.Work{Cause: due},
			grant.SignOut,
		},
		{
			"no refresh token and a second left",
			with(live(time.Second), noRefresh),
			grant.Work{Cause: due},
			grant.Sync,
		},
		{
			"no refresh token and no end",
			with(live(0), func(g *grant.Grant) { noRefresh(g); g.Pair.ExpiresAt = time.Time{} }),
			grant.Work{Cause: due},
			grant.Sync,
		},
		{
			"no refresh token and tokens wanted",
			with(live(20*time.Minute), noRefresh),
			grant.Work{Cause: asked, Want: schema.WantTokens},
			grant.Decline,
		},
		{
			"no refresh token and more validity wanted",
			with(live(20*time.Minute), noRefresh),
			grant.Work{Cause: asked, MinValid: time.Hour},
			grant.Decline,
		},
		{
			"a dead grant answers commands",
			with(live(0), func(g *grant.Grant) { g.Status = grant.ReauthRequired }),
			grant.Work{Cause: asked},
			grant.Refuse,
		},
		{
			"a dead grant drops timers",
			with(live(0), func(g *grant.Grant) { g.Status = grant.ReauthRequired }),
			grant.Work{Cause: due},
			grant.Drop,
		},
		{
			"a suspended grant drops timers",
			with(live(0), func(g *grant.Grant) { g.Status = grant.Suspended }),
			grant.Work{Cause: due},
			grant.Drop,
		},
		{
			"resume after the pair was saved",
			with(live(0), func(g *grant.Grant) { g.Cause, g.Progress = due, grant.Saved }),
			grant.Work{Cause: due},
			grant.Sync,
		},
		{
			"resume after the outcome was stored",
			with(live(0), func(g *grant.Grant) { g.Cause, g.Progress = due, grant.Synced }),
			grant.Work{Cause: due},
			grant.Publish,
		},
		{
			"the same id of another source does not resume",
			with(live(20*time.Minute), func(g *grant.Grant) {
				g.Cause = schema.Cause{ID: asked.ID, Source: "/crm", Type: asked.Type}
				g.Progress = grant.Synced
			}),
			grant.Work{Cause: asked},
			grant.Sync,
		},
		{
			"another cause does not resume",
			with(live(0), func(g *grant.Grant) { g.Cause, g.Progress = asked, grant.Synced }),
			grant.Work{Cause: due},
			grant.Refresh,
		},
		{"the outcome of a dead grant is still published", with(live(0), func(g *grant.Grant) {
			g.Status, g.Cause, g.Progress = grant.ReauthRequired, due, grant.Synced
		}), grant.Work{Cause: due}, grant.Publish},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := grant.Decide(&tt.g, tt.w, policy, noon); got != tt.want {
				t.Errorf("Decide = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDue(t *testing.T) {
	pair := live(30 * time.Minute).Pair
	got, want := policy.Due(pair, noon, 0), pair.ExpiresAt.Add(-5*time.Minute)
	if !got.Equal(want) {
		t.Errorf("without jitter due %v, want %v", got, want)
	}
	got, want = policy.Due(pair, noon, 1), pair.ExpiresAt.Add(-8*time.Minute)
	if !got.Equal(want) {
		t.Errorf("with the largest jitter due %v, want %v", got, want)
	}
	short := grant.Pair{
		Refresh:   secret.New("r"),
		Lifetime:  10 * time.Second,
		ExpiresAt: noon.Add(10 * time.Second),
	}
	if got, want := policy.Due(short, noon, 0), noon.Add(8*time.Second); !got.Equal(want) {
		t.Errorf("a short life has a margin of a fifth: due %v, want %v", got, want)
	}
	late := pair.ExpiresAt.Add(time.Hour)
	got, want = policy.Due(pair, late, 0), late.Add(policy.Floor)
	if !got.Equal(want) {
		t.Errorf("an expired pair is due at the floor: %v, want %v", got, want)
	}
	short.Refresh = secret.Value{}
	if got := policy.Due(short, noon, 0.9); !got.Equal(short.ExpiresAt) {
		t.Errorf("without a refresh token due %v, want its expiry", got)
	}
}

func TestRetryGrowsAndIsBounded(t *testing.T) {
	for n := 1; n < 60; n++ {
		lo, hi := policy.Retry(n, 0), policy.Retry(n, 1)
		if lo < policy.RetryMin/2 || hi > policy.RetryMax || lo > hi {
			t.Fatalf("try %d: %v to %v is outside %v to %v",
				n, lo, hi, policy.RetryMin/2, policy.RetryMax)
		}
	}
	if policy.Retry(3, 1) <= policy.Retry(1, 1) {
		t.Error("the third wait is no longer than the first")
	}
}
