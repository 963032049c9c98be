package grant_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

func TestMarkIsReadBack(t *testing.T) {
	for _, m := range []grant.Mark{
		{Version: 1}, {Version: 1_700_000_000_123, Token: new(live(0)).Fingerprint()},
	} {
		if got, err := grant.ParseMark(m.String()); err != nil || got != m {
			t.Errorf("%q was read as %+v, %v", m, got, err)
		}
	}
	if got, err := grant.ParseMark(""); err != nil || got != (grant.Mark{}) {
		t.Errorf("nothing was read as %+v, %v", got, err)
	}
	for _, bad := range []string{"x", " ", "0 x", "-1 x", "1x"} {
		if got, err := grant.ParseMark(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, got)
		}
	}
}

// What a mark of the timer or the outcomes makes of a record at version 100.
func TestMarkDecides(t *testing.T) {
	own := new(live(0)).Fingerprint()
	for name, tt := range map[string]struct {
		mark   grant.Mark
		status grant.Status
		unsure bool
		want   grant.Step
	}{
		"the same record": {
			grant.Mark{Version: 100, Token: own}, grant.Live, false, grant.Refresh,
		},
		"an older one: the timer's late": {
			grant.Mark{Version: 90, Token: "other"}, grant.Live, false, grant.Refresh,
		},
		"later, the same token": {
			grant.Mark{Version: 105, Token: own}, grant.Live, true, grant.Refresh,
		},
		"later, another token": {
			grant.Mark{Version: 101, Token: "other"}, grant.Live, true, grant.Suspend,
		},
		"later, no token": {
			grant.Mark{Version: 101}, grant.Live, true, grant.Suspend,
		},
		"not known":                     {grant.Mark{}, grant.Live, true, grant.Refresh},
		"not known, nothing to present": {grant.Mark{}, grant.ReauthRequired, false, grant.Drop},
		"signed in since": {
			grant.Mark{Version: 101, Token: "other"}, grant.ReauthRequired, true, grant.Suspend,
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := live(0)
			g.Status = tt.status
			w := grant.Work{Cause: due, Mark: tt.mark}
			if got := w.Unsure(&g); got != tt.unsure {
				t.Errorf("unsure %v", got)
			}
			if got := grant.Decide(&g, w, policy, noon); got != tt.want {
				t.Errorf("decided %s", got)
			}
		})
	}
}

func withMark(t grant.Turn, g grant.Grant) grant.Turn {
	t.Work.Mark = g.Mark()
	return t
}

// Whatever is made of a record that is behind, its version goes beyond what was published.
func TestChangesGoBeyondWhatWasPublished(t *testing.T) {
	turn := turn(due, noon)
	turn.Work.Mark = grant.Mark{Version: noon.UnixMilli() + 500, Token: new(live(0)).Fingerprint()}
	g := live(0)
	profiled := g.Resumed(turn)
	profiled.Profile = profile(schema.Profile{ID: "u"})
	synced, write := profiled.WithProfile(turn, profiled.Profile)
	if !write {
		t.Error("a record that is behind is not written")
	}
	refused, _ := g.Refused(turn, &grant.Fault{Class: grant.Permanent}, g.Fingerprint())
	candidate := grant.Candidate{Pair: login(9), Login: grant.Position{Sequence: 99}}
	loggedIn, _ := grant.LoggedIn(g, g.Key, candidate, turn)
	first, _ := grant.LoggedIn(grant.Grant{}, g.Key, candidate, turn)
	for name, next := range map[string]grant.Grant{
		"rotated":                           g.Rotated(turn, tokens(1), g.Fingerprint()),
		"synced":                            synced,
		"failed":                            g.Failed(turn, grant.Failure{Reason: "x"}),
		"refused":                           refused,
		"signed out":                        g.SignedOut(turn, grant.Verdict{}),
		"superseded":                        g.Superseded(turn),
		"accepted":                          g.Accepted(turn),
		"logged in":                         loggedIn,
		"logged in again after it was lost": first,
		"erased":                            g.Erased(g.Key, grant.Position{}, turn),
		"rejected": loggedIn.AsCandidate().
			Rejected(withMark(turn, loggedIn)),
	} {
		if next.Version <= turn.Work.Mark.Version {
			t.Errorf("%s: version %d, published %d", name, next.Version, turn.Work.Mark.Version)
		}
	}
}

func TestSupersededKeepsTheTokensAndWaits(t *testing.T) {
	g := live(0)
	g.NextDueAt = noon
	next := g.Superseded(turn(due, noon))
	if next.Status != grant.Suspended || !next.IsSuperseded() ||
		next.Refusal() != schema.ReasonSuperseded || next.NextDueAt.IsZero() ||
		!next.Pair.Refresh.Equal(g.Pair.Refresh) || next.Pending.Type != schema.UserRefreshFailed {
		t.Errorf("%+v", next)
	}
	if again := grant.Decide(&next, grant.Work{Cause: due}, policy, noon); again != grant.Publish {
		t.Errorf("delivered again: %s", again)
	}
	in, what := grant.LoggedIn(next, g.Key,
		grant.Candidate{Pair: login(9), Login: grant.Position{Sequence: 1 << 30}}, turn(due, noon))
	in = in.AsCandidate().Proven(turn(due, noon))
	if what != grant.Fresh || in.Status != grant.Live || !in.Recovered || !same(in.Pair, login(9)) {
		t.Errorf("after a login %+v", in)
	}
	on := next.Accepted(turn(due, noon))
	if on.Status != grant.Live || !on.NextDueAt.Equal(noon) || on.IsSuperseded() {
		t.Errorf("accepted %+v", on)
	}
}

// A LOGINS stream that was restored gives out sequences again that the store has seen already.
func TestLoginOrderAfterARestoredStream(t *testing.T) {
	position := func(seq uint64, minute int) grant.Position {
		return grant.Position{
			Stream:   noon,
			Sequence: seq,
			Time:     noon.Add(time.Duration(minute) * time.Minute),
		}
	}
	for name, tt := range map[string]struct {
		stored, login grant.Position
		newer         bool
	}{
		"the next one":                       {position(5, 10), position(6, 11), true},
		"delivered again":                    {position(5, 10), position(5, 10), false},
		"an older one, late":                 {position(5, 10), position(4, 9), false},
		"of the same time, by another clock": {position(5, 10), position(4, 11), false},
		"after a restore":                    {position(50, 10), position(41, 20), true},
		"after the clock was set back":       {position(5, 10), position(6, 2), true},
		"of a time that nobody noted": {
			grant.Position{Stream: noon, Sequence: 5}, position(4, 20), false,
		},
	} {
		if got := tt.stored.Before(tt.login); got != tt.newer {
			t.Errorf("%s: newer %v", name, got)
		}
	}
}
