package grant_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// logout is a command at this place in LOGINS.
func logout(seq uint64) (grant.Turn, grant.Position) {
	t := turn(schema.Cause{
		ID: "logout", Type: schema.UserLogout, Source: "/app", Time: noon, Reason: "by hand",
	}, noon)
	t.Nonce = "logout"
	return t, grant.Position{Stream: noon, Sequence: seq, Time: noon}
}

// signedIn is a grant whose proven login has this place.
func signedIn(t *testing.T, seq uint64) grant.Grant {
	t.Helper()
	return in(t, grant.Grant{}, 5, seq).AsCandidate().Proven(turn(asked, noon))
}

func TestALogoutEndsTheLoginsBeforeIt(t *testing.T) {
	for name, tt := range map[string]struct {
		place uint64
		want  grant.Arrival
	}{
		"before the login":  {4, grant.Outdated},
		"after it":          {6, grant.Fresh},
		"in a newer stream": {1, grant.Fresh},
	} {
		g := signedIn(t, 5)
		by, place := logout(tt.place)
		if tt.place == 1 {
			place.Stream = noon.Add(time.Hour)
		}
		if got := g.LogoutArrives(place); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
		if tt.want != grant.Fresh {
			continue
		}
		out := g.LoggedOut(by, place, true, "")
		if out.Status != grant.SignedOff || out.Pair != (grant.Pair{}) ||
			out.Version <= g.Version || !out.NextDueAt.Equal(noon) || out.Profile != g.Profile {
			t.Errorf("%s: %+v", name, out)
		}
		if got := out.LogoutArrives(place); got != grant.Stored {
			t.Errorf("%s: delivered again it is %s", name, got)
		}
		older := place
		older.Sequence--
		if got := out.LogoutArrives(older); got != grant.Outdated {
			t.Errorf("%s: an older logout is %s", name, got)
		}
	}
}

func TestALogoutIsToldOnceWithItsResult(t *testing.T) {
	g := signedIn(t, 5)
	by, place := logout(6)
	out := g.LoggedOut(by, place, false, schema.RevokeUnsupported)
	e := out.Event("/renewd", noon, grant.ShowMapped)
	d, err := schema.Data[schema.SignedOut](e)
	if err != nil {
		t.Fatal(err)
	}
	if d.Cause.ID != "logout" || d.Reason != "by hand" || d.Revoked || d.Version != out.Version ||
		d.RevokeError != schema.RevokeUnsupported || e.ID != grant.OutcomeID(key, by.Work.Cause) {
		t.Errorf("%s: %+v", e.ID, d)
	}
	if rested := out.Rested(by); !rested.Resting() || rested.Version != out.Version {
		t.Errorf("told, it does not rest: %+v", rested)
	}
	// What was decided before is owed, and comes first.
	g.Pending = &grant.Pending{
		ID: "earlier", Type: schema.UserSynced, Version: g.Version, Data: json.RawMessage(`{}`),
	}
	g.Cause = schema.Cause{ID: "earlier", Source: "/app"}
	next := g.LoggedOut(by, place, false, "")
	owed := next.Untold(by.Work.Cause, nil)
	if len(owed) != 1 || owed[0].ID != "earlier" {
		t.Errorf("owed %+v", owed)
	}
}

// A login that waits to be proven is over with the logout after it, and has its turn if it came
// after the logout.
func TestALogoutLeavesNewerLoginsAlone(t *testing.T) {
	g := in(t, in(t, signedIn(t, 5), 7, 7), 9, 9)
	by, place := logout(8)
	out := g.LoggedOut(by, place, false, "")
	c := out.Candidate
	if out.Status != grant.SignedOff || c == nil || c.Login.Sequence != 9 || c.Next != nil {
		t.Fatalf("%+v", out)
	}
	owed := out.Untold(by.Work.Cause, nil)
	if len(owed) != 1 || owed[0].Type != schema.MessageRejected {
		t.Errorf("owed %+v", owed)
	}
	proven := out.AsCandidate().Proven(turn(asked, noon))
	if proven.Status != grant.Live || proven.Recovered || !same(proven.Pair, login(9)) {
		t.Errorf("the newer login did not win: %+v", proven)
	}
	if got := proven.LogoutArrives(place); got != grant.Outdated {
		t.Errorf("the logout, again, is %s", got)
	}
}

// After a logout no login of before it signs the user in, whatever order they are handled in.
func TestNoOlderLoginComesAfterALogout(t *testing.T) {
	by, place := logout(8)
	out := signedIn(t, 5).LoggedOut(by, place, false, "")
	out.Revision = 3
	for n, want := range map[int]grant.Arrival{7: grant.Outdated, 9: grant.Fresh} {
		_, what := grant.LoggedIn(out, key, candidate(n, uint64(n)), turn(asked, noon))
		if what != want {
			t.Errorf("login %d is %s, want %s", n, what, want)
		}
	}
	again := candidate(5, 10) // the session that ended, published again
	if _, what := grant.LoggedIn(out, key, again, turn(asked, noon)); what != grant.Repeated {
		t.Errorf("the login that the logout ended, published again, is %s", what)
	}
	policy := new(grant.Policy{}.WithDefaults())
	if step := grant.Decide(&out, grant.Work{Cause: asked}, policy, noon); step != grant.Refuse {
		t.Errorf("a request is %s", step)
	}
	if out.Refusal() != schema.ReasonSignedOut {
		t.Errorf("refused as %s", out.Refusal())
	}
}

// An erasure takes a signed-out user too, though the logout came after the newest login it knows.
func TestASignedOutUserIsErased(t *testing.T) {
	by, place := logout(8)
	out := signedIn(t, 5).LoggedOut(by, place, false, "")
	gone := out.Erased(key, grant.Position{Stream: noon, Sequence: 7, Time: noon},
		turn(asked, noon))
	if gone.Status != grant.Forgotten || gone.Login.Sequence != 8 {
		t.Errorf("%+v", gone)
	}
}

// A pair that comes in after the logout is not taken.
func TestALogoutDropsAPairInFlight(t *testing.T) {
	g := signedIn(t, 5)
	by, place := logout(6)
	out := g.LoggedOut(by, place, false, "")
	if out.Accepts(g.Fingerprint(), noon.Add(time.Minute)) || out.Holds(g.Fingerprint()) {
		t.Error("the pair would be taken")
	}
}

// A login that was proven false says nothing of the session before it. A logout between the two
// that comes late, since it was put off, ends that session, and so does an erasure.
func TestALoginThatWasProvenFalseOutdatesNothing(t *testing.T) {
	for name, before := range map[string]grant.Grant{
		"proven": signedIn(t, 5), "not proven yet": in(t, grant.Grant{}, 5, 5),
	} {
		g := in(t, before, 9, 9).AsCandidate().Rejected(turn(asked, noon))
		g.Revision = 9
		by, place := logout(7)
		if got := g.LogoutArrives(place); got != grant.Fresh {
			t.Errorf("%s: a logout after it is %s", name, got)
		}
		out := g.LoggedOut(by, place, false, "")
		if out.Status != grant.SignedOff || out.Candidate != nil ||
			out.Holds(login(5).Refresh.Fingerprint()) {
			t.Errorf("%s: it lives on: %+v", name, out)
		}
		if held := g.Revocable(place); len(held) != 1 {
			t.Errorf("%s: of its tokens %d are revoked", name, len(held))
		}
		gone := g.Erased(key, place, turn(asked, noon))
		if gone.Status != grant.Forgotten {
			t.Errorf("%s: erased, it is %s", name, gone.Status)
		}
		out.Revision, gone.Revision = 10, 10
		for now, g := range map[string]grant.Grant{"before": g, "signed out": out, "erased": gone} {
			again := candidate(9, 9)
			if _, what := grant.LoggedIn(g, key, again, turn(asked, noon)); what != grant.Stored {
				t.Errorf("%s, %s: the false login, delivered again, is %s", name, now, what)
			}
		}
	}
}
