package grant_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

func tokens(n int) grant.Tokens {
	return grant.Tokens{
		Access:    secret.New(fmt.Sprintf("access-%d", n)),
		Refresh:   secret.New(fmt.Sprintf("refresh-%d", n)),
		ExpiresIn: 30 * time.Minute,
		SentAt:    noon,
	}
}

func TestRotatedSavesThePairAndEndsTheClaim(t *testing.T) {
	g := live(0)
	g.Claim = &grant.Claim{Nonce: "n1"}
	g.Verdict, g.Doubt = &grant.Verdict{}, &grant.Doubt{}
	next := g.Rotated(turn(due, noon), tokens(1), g.Fingerprint())
	if next.Pair.Refresh.Reveal() != "refresh-1" || next.Pair.Parent != g.Fingerprint() ||
		next.Version != 101 || next.SavedBy != "n1" {
		t.Errorf("pair or version not as expected: %+v", next)
	}
	if next.Claim != nil || next.Verdict != nil || next.Doubt != nil ||
		next.Progress != grant.Saved || !next.Recovered {
		t.Errorf("claim, verdict, doubt or progress left behind: %+v", next)
	}
	if !next.Pair.ExpiresAt.Equal(noon.Add(30*time.Minute)) ||
		!next.NextDueAt.Before(next.Pair.ExpiresAt) {
		t.Errorf("expires %v, due %v", next.Pair.ExpiresAt, next.NextDueAt)
	}
}

// RFC 6749 section 6: the authorization server MAY issue a new refresh token.
func TestRotatedKeepsWhatTheProviderLeavesOut(t *testing.T) {
	g := live(0)
	g.Pair.ID, g.Pair.Scope = secret.New("id-0"), "openid"
	next := g.Rotated(turn(due, noon), grant.Tokens{Access: secret.New("access-1"), SentAt: noon},
		g.Fingerprint())
	if next.Pair.Refresh.Reveal() != "refresh-0" || !next.Pair.ID.IsZero() ||
		next.Pair.Scope != "openid" {
		t.Errorf("kept %v %v %q",
			next.Pair.Refresh.Reveal(), next.Pair.ID.Reveal(), next.Pair.Scope)
	}
	if next.Pair.Lifetime != policy.Lifetime {
		t.Errorf("lifetime without expires_in is %v, want the default %v",
			next.Pair.Lifetime, policy.Lifetime)
	}
}

func TestAnotherWorkersClaimIsLeftAlone(t *testing.T) {
	g := live(0)
	g.Claim = &grant.Claim{Nonce: "other"}
	if next := g.Rotated(turn(due, noon), tokens(1), g.Fingerprint()); next.Claim == nil {
		t.Error("the claim of another worker is gone")
	}
}

func TestAccepts(t *testing.T) {
	g := live(0)
	presented := g.Fingerprint()
	if !g.Accepts(presented, noon) {
		t.Error("the answer to the stored token is refused")
	}
	rotated := g.Rotated(turn(due, noon), tokens(1), presented)
	if rotated.Accepts(presented, noon.Add(-time.Second)) {
		t.Error("the answer to an earlier presentation replaces a later one")
	}
	if !rotated.Accepts(presented, noon.Add(time.Second)) {
		t.Error("the answer to a later presentation of the same token is refused")
	}
	in, _ := grant.LoggedIn(g, key,
		grant.Candidate{Pair: login(1), Login: grant.Position{Stream: noon, Sequence: 9}},
		turn(due, noon))
	if !in.Accepts(presented, noon.Add(time.Hour)) {
		t.Error("an answer to the proven pair is refused because there is a candidate")
	}
	if in = in.AsCandidate().Proven(turn(due, noon)); in.Accepts(presented, noon.Add(time.Hour)) {
		t.Error("an answer in flight replaces a newer login")
	}
	// A provider that does not rotate: parent and token are the same.
	same := g.Rotated(turn(due, noon), grant.Tokens{Access: secret.New("access-1"), SentAt: noon},
		presented)
	if !same.Accepts(presented, noon.Add(time.Minute)) ||
		same.Accepts(presented, noon.Add(-time.Minute)) {
		t.Error("a provider that does not rotate: later answers win, earlier ones do not")
	}
}

func TestRefusedNeedsConfirmation(t *testing.T) {
	fault := &grant.Fault{
		Class:  grant.Permanent,
		Code:   "invalid_grant",
		Reason: schema.ReasonRevoked,
	}
	g := live(0)
	presented := g.Fingerprint()
	first, done := g.Refused(turn(due, noon), fault, presented)
	if done || first.Status != grant.Live || first.Verdict == nil || first.Pending != nil {
		t.Fatalf("the first refusal is a verdict already: %+v", first)
	}
	if wait := first.NextDueAt.Sub(noon); wait < policy.ConfirmMin || wait > policy.ConfirmMax {
		t.Errorf("asked again after %v", wait)
	}
	early, done := first.Refused(turn(asked, noon.Add(5*time.Second)), fault, presented)
	if done || !early.Verdict.At.Equal(noon) {
		t.Error("a second refusal right after the first confirms it, or starts the wait anew")
	}
	second, done := first.Refused(turn(due, first.NextDueAt), fault, presented)
	if done || second.Status != grant.Live || !second.NextDueAt.After(first.NextDueAt) {
		t.Fatalf("the second refusal is final: %+v", second)
	}
	later := turn(due, second.NextDueAt.Add(time.Hour))
	again, done := second.Refused(later, fault, presented)
	if done || !again.Verdict.Again.After(second.Verdict.Again) {
		t.Error("a refusal long after the second is final, " +
			"though nobody knows any more what others were told then")
	}
	final, done := second.Refused(turn(due, second.NextDueAt), fault, presented)
	if !done || final.Status != grant.ReauthRequired ||
		final.Pending.Type != schema.UserReauthRequired {
		t.Fatalf("a confirmed refusal is no verdict: %+v", final)
	}
	if !final.Pair.Refresh.IsZero() || !final.Pair.Access.IsZero() {
		t.Error("the tokens of a dead grant are kept")
	}
	doubted, _ := g.Doubted(noon).Refused(turn(due, noon), fault, presented)
	if doubted.Verdict.Reason != schema.ReasonRotationLost {
		t.Errorf("after a lost reply the reason is %q", doubted.Verdict.Reason)
	}
}

func TestFailedNeverSignsOut(t *testing.T) {
	for _, own := range []bool{false, true} {
		g := live(0)
		answered := 0
		for n := range 100 {
			g = g.Failed(turn(due, noon.Add(time.Duration(n)*time.Hour)), grant.Failure{
				Reason: "x",
				Own:    own,
			})
			if g.Status != grant.Live || g.Pair.Refresh.IsZero() {
				t.Fatal("a failure ended the grant")
			}
			if g.Pending != nil {
				answered++
				if g.Pending.Type != schema.UserRefreshFailed {
					t.Fatalf("answered %s", g.Pending.Type)
				}
			}
		}
		if own && answered != 100-policy.Tries+1 || !own && answered != 1 {
			t.Errorf("own %v: %d answers in 100 failures", own, answered)
		}
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	g := live(0).Failed(turn(due, noon), grant.Failure{
		Reason: schema.ReasonThrottled,
		Wait:   7 * time.Minute,
	})
	if g.NextDueAt.Before(noon.Add(7 * time.Minute)) {
		t.Errorf("next try at %v", g.NextDueAt)
	}
}

func profile(p schema.Profile) grant.Profile {
	out, err := grant.NewProfile(p)
	if err != nil {
		panic(err)
	}
	return out
}

func TestChanged(t *testing.T) {
	yes := true
	a := schema.Profile{
		ID:    "u",
		Email: "a@x",
		Raw:   json.RawMessage(`{"last_active_at":1,"x":{"y":[1,2]}}`),
	}
	b := a
	b.Raw = json.RawMessage(`{"x":{"y":[1,2]},"last_active_at":2}`)
	if got := grant.Changed(profile(a), profile(b)); got != nil {
		t.Errorf("last_active_at counts as a change: %v", got)
	}
	for raw, same := range map[string]bool{
		`{"last_active_at":22,"x":{"y":[1,2]}}`:      true,
		`{"last_active_at":null,"x":{"y":[1,2]}}`:    true,
		`{"last_active_at":2,"x":{"y":[1,3]}}`:       false,
		`{"last_active_at":2,"x":{"y":[1,2]},"z":1}`: false,
	} {
		b.Raw = json.RawMessage(raw)
		if got := grant.Changed(profile(a), profile(b)); (len(got) == 0) != same {
			t.Errorf("%s against %s: changed %v", raw, a.Raw, got)
		}
	}
	inner := a
	inner.Raw = json.RawMessage(`{"x":{"last_active_at":1}}`)
	b.Raw = json.RawMessage(`{"x":{"last_active_at":2}}`)
	if len(grant.Changed(profile(inner), profile(b))) == 0 {
		t.Error("a member of another object counts as the user's last activity")
	}
	b.Raw = json.RawMessage(`{"x":{"y":[1,3]},"last_active_at":2}`)
	if got := grant.Changed(profile(a), profile(b)); !reflect.DeepEqual(got, []string{"raw"}) {
		t.Errorf("an unmapped field: %v", got)
	}
	b.Email, b.MFAEnabled = "b@x", &yes
	b.Organisations = []schema.Organisation{{ID: "o1", Role: "Admin"}}
	got := grant.Changed(profile(a), profile(b))
	if !reflect.DeepEqual(got, []string{"email", "mfa_enabled", "organisations"}) {
		t.Errorf("changed %v", got)
	}
	got = grant.Changed("", profile(schema.Profile{ID: "u"}))
	if !reflect.DeepEqual(got, []string{"id"}) {
		t.Errorf("from nothing %v", got)
	}
}

func TestSecretCannotBePrinted(t *testing.T) {
	type row struct {
		Open   secret.Value
		hidden secret.Value
	}
	s := secret.New("tok-canary")
	r := row{s, s}
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	logger.Info("x", "secret", s, "row", r, "pointer", &r)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "row", r)
	js, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(js) +
		fmt.Sprintf("%v %+v %#v %s %q %x %d %v %#v", s, s, s, s, s, s, s, r, r) +
		fmt.Sprint(live(0)) + fmt.Sprintf("%#v", live(0))
	if strings.Contains(out, "canary") || strings.Contains(out, "refresh-0") {
		t.Errorf("a secret was printed: %s", out)
	}
	if !strings.Contains(out, "[redacted]") || r.hidden.Reveal() != "tok-canary" {
		t.Error("the test printed nothing of the secret's place")
	}
}

func TestOutcomeCarriesTheStoredProfile(t *testing.T) {
	g, write := live(20*time.Minute).Resumed(turn(asked, noon)).
		WithProfile(turn(asked, noon), profile(schema.Profile{ID: "u17", Email: "new@example.com"}))
	if !write {
		t.Fatal("a changed profile is not written")
	}
	e := g.Event("/renewd", noon, grant.ShowRaw)
	d, err := schema.Data[schema.Synced](e)
	if err != nil || d.Profile == nil || d.Profile.Email != "new@example.com" ||
		d.Cause.ID != "r1" || !reflect.DeepEqual(d.Changed, []string{"email"}) {
		t.Errorf("outcome %s, %v", e.Data, err)
	}
	if e.ID != grant.OutcomeID(key, asked) {
		t.Error("the outcome's id is not that of its cause")
	}
	same := live(20 * time.Minute)
	same = same.Resumed(turn(asked, noon))
	if _, write := same.WithProfile(turn(asked, noon), same.Profile); write {
		t.Error("an unchanged profile is written")
	}
}
