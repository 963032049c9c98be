package grant_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// hold is a user.suspend, or a user.resume, at this place in LOGINS.
func hold(of schema.Type, seq uint64) (grant.Turn, grant.Position) {
	t := turn(schema.Cause{
		ID: string(of), Type: of, Source: "/operators/kim", Time: noon, Reason: "by hand",
	}, noon)
	t.Nonce = string(of)
	return t, grant.Position{Stream: noon, Sequence: seq, Time: noon}
}

func suspended(t *testing.T, g grant.Grant, seq uint64) grant.Grant {
	t.Helper()
	by, place := hold(schema.UserSuspend, seq)
	g = g.SuspendedBy(by, place)
	g.Revision++
	return g
}

func TestASuspensionKeepsTheSessionAndRests(t *testing.T) {
	before := signedIn(t, 5)
	g := suspended(t, before, 6)
	if g.Status != grant.Suspended || !same(g.Pair, before.Pair) || g.Version <= before.Version ||
		!g.NextDueAt.Equal(noon) || !g.SuspendedAt().Equal(noon) || g.IsSuperseded() {
		t.Fatalf("%+v", g)
	}
	d, err := schema.Data[schema.Suspended](g.Event("/renewd", noon, grant.ShowMapped))
	if err != nil || d.Reason != "by hand" || d.Version != g.Version {
		t.Errorf("%+v, %v", d, err)
	}
	by, _ := hold(schema.UserSuspend, 6)
	if g = g.Rested(by); !g.Resting() {
		t.Error("told, it does not rest")
	}
	late := noon.Add(48 * time.Hour)
	for want, cause := range map[grant.Step]schema.Cause{grant.Refuse: asked, grant.Drop: due} {
		w := grant.Work{Cause: cause, Want: schema.WantTokens}
		if step := grant.Decide(&g, w, policy, late); step != want {
			t.Errorf("%s is %s, want %s", cause.Type, step, want)
		}
	}
	if g.Refusal() != schema.ReasonSuspended {
		t.Errorf("refused as %s", g.Refusal())
	}
}

// By their places, whatever order they are handled in.
func TestTheNewestOfSuspendResumeLoginAndLogoutDecides(t *testing.T) {
	g := signedIn(t, 5)
	_, place := hold(schema.UserSuspend, 4)
	if got := g.HoldArrives(place); got != grant.Outdated {
		t.Errorf("of before the login it is %s", got)
	}
	g = suspended(t, g, 8)
	for seq, want := range map[uint64]grant.Arrival{
		7: grant.Outdated, 8: grant.Stored, 9: grant.Fresh,
	} {
		_, place := hold(schema.UserResume, seq)
		if got := g.HoldArrives(place); got != want {
			t.Errorf("a resume at %d is %s, want %s", seq, got, want)
		}
	}
	// A logout of before the suspension still ends the session.
	by, place := logout(7)
	if got := g.LogoutArrives(place); got != grant.Fresh {
		t.Errorf("an older logout is %s", got)
	}
	if out := g.LoggedOut(by, place, false, ""); out.Status != grant.SignedOff {
		t.Errorf("%+v", out)
	}
	// A newer login ends it; an older one that comes late does not.
	_, what := grant.LoggedIn(g, key, candidate(7, 7), turn(asked, noon))
	if what != grant.Outdated {
		t.Errorf("an older login is %s", what)
	}
	in := in(t, g, 9, 9).AsCandidate().Proven(turn(asked, noon))
	if in.Status != grant.Live || !in.SuspendedAt().IsZero() {
		t.Errorf("the newer login did not win: %+v", in)
	}
	_, place = hold(schema.UserSuspend, 8)
	if got := in.HoldArrives(place); got != grant.Outdated {
		t.Errorf("the suspension, again, is %s", got)
	}
}

// A login that was not proven by then would end the suspension, and is over.
func TestASuspensionEndsLoginsThatAreNotProven(t *testing.T) {
	g := suspended(t, in(t, in(t, signedIn(t, 5), 7, 7), 9, 9), 8)
	c := g.Candidate
	if g.Status != grant.Suspended || c == nil || c.Login.Sequence != 9 || c.Next != nil {
		t.Fatalf("%+v", g)
	}
	if owed := g.Untold(g.Cause, nil); len(owed) != 1 || owed[0].Type != schema.MessageRejected {
		t.Errorf("owed %+v", owed)
	}
	// Where nothing was proven nothing is left.
	g = suspended(t, in(t, grant.Grant{}, 5, 5), 6)
	if g.Status != grant.SignedOff || g.Candidate != nil || g.Pending.Type != schema.UserSignedOut {
		t.Errorf("%+v", g)
	}
	_, place := hold(schema.UserSuspend, 6)
	if got := g.HoldArrives(place); got != grant.Stored {
		t.Errorf("delivered again it is %s", got)
	}
}

// What is not renewed anyway stays what it is, and the command says so.
func TestASuspensionOfWhatHasEndedIsRefused(t *testing.T) {
	by, place := logout(6)
	superseded := signedIn(t, 5).Superseded(turn(asked, noon))
	for reason, before := range map[string]grant.Grant{
		schema.ReasonSignedOut:  signedIn(t, 5).LoggedOut(by, place, false, ""),
		schema.ReasonSuperseded: superseded,
		schema.ReasonReauthRequired: signedIn(t, 5).SignedOut(
			turn(asked, noon), grant.Verdict{Reason: schema.ReasonRevoked}),
	} {
		g := suspended(t, before, 8)
		d, err := schema.Data[schema.RefreshFailed](g.Event("/renewd", noon, grant.ShowMapped))
		if err != nil || d.Reason != reason || g.Status != before.Status ||
			!g.SuspendedAt().IsZero() {
			t.Errorf("%s: %+v, %s, %v", reason, d, g.Status, err)
		}
		by, place := hold(schema.UserResume, 9)
		if g = g.ResumedBy(by, place); g.Status != before.Status || g.Hold.Sequence != 9 {
			t.Errorf("%s: resumed it is %+v", reason, g)
		}
	}
}

func TestAResumptionGoesOnWhereTheSuspensionBegan(t *testing.T) {
	before := signedIn(t, 5)
	before.Attempts, before.LastError = 2, schema.ReasonProviderUnknown
	before.Doubt = &grant.Doubt{Fingerprint: before.Fingerprint(), Since: noon}
	g := suspended(t, before, 8)
	by, place := hold(schema.UserResume, 9)
	next := g.ResumedBy(by, place)
	if next.Status != grant.Live || !next.NextDueAt.Equal(noon) || next.Attempts != 0 ||
		next.Doubt == nil || !next.Recovered || !same(next.Pair, before.Pair) {
		t.Errorf("%+v", next)
	}
	if step := grant.Decide(&next, by.Work, policy, noon); step != grant.Refresh {
		t.Errorf("a token that may be spent: %s", step)
	}
	// Not where the store was restored meanwhile.
	by.Work.Mark = grant.Mark{Version: g.Version + 5, Token: "newer"}
	if next = g.ResumedBy(by, place); next.Status != grant.Suspended {
		t.Errorf("superseded, it is %s", next.Status)
	}
}

// A pair that was under way is kept, and changes nothing of the suspension.
func TestASuspensionKeepsAPairInFlight(t *testing.T) {
	before := signedIn(t, 5)
	g := suspended(t, before, 6)
	if !g.Accepts(before.Fingerprint(), noon.Add(time.Minute)) {
		t.Fatal("the pair is dropped")
	}
	got := g.Rotated(turn(asked, noon), tokens(9), before.Fingerprint())
	if got.Status != grant.Suspended || got.Pair.Refresh.Reveal() != tokens(9).Refresh.Reveal() ||
		!got.NextDueAt.Equal(g.NextDueAt) {
		t.Errorf("%+v", got)
	}
	owed := got.Untold(got.Cause, nil)
	if len(owed) != 1 || owed[0].Type != schema.UserSuspended {
		t.Errorf("owed %+v", owed)
	}
	if step := grant.Decide(&got, grant.Work{Cause: asked}, policy, noon); step != grant.Refuse {
		t.Errorf("what was asked for is %s", step)
	}
}

// An operator who goes on with the tokens of a restored store does not end a suspension.
func TestAcceptingAStoreEndsNoSuspension(t *testing.T) {
	g := suspended(t, signedIn(t, 5), 6)
	got := g.Accepted(turn(asked, noon))
	if got.Status != grant.Suspended || got.Version <= g.Version {
		t.Errorf("%+v", got)
	}
}
