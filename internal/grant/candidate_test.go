package grant_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// login is the pair of a fresh login.
func login(n int) grant.Pair {
	return grant.Pair{
		Access:    secret.New(fmt.Sprintf("login-access-%d", n)),
		Refresh:   secret.New(fmt.Sprintf("login-%d", n)),
		ExpiresAt: noon.Add(30 * time.Minute),
		Lifetime:  30 * time.Minute,
		SentAt:    noon,
	}
}

func same(a, b grant.Pair) bool {
	return a.Access.Equal(b.Access) && a.Refresh.Equal(b.Refresh) && a.ExpiresAt.Equal(b.ExpiresAt)
}

func candidate(n int, seq uint64) grant.Candidate {
	p := login(n)
	return grant.Candidate{
		Pair: p,
		Cause: schema.Cause{
			ID:     fmt.Sprintf("login-%d", n),
			Type:   schema.UserLogin,
			Source: "/app",
			Time:   noon,
		},
		Login: grant.Position{
			Stream:   noon,
			Sequence: seq,
			Time:     noon,
			SealedAt: noon,
			Token:    p.Refresh.Fingerprint(),
		},
	}
}

// in is g with the login n as its candidate.
func in(t *testing.T, g grant.Grant, n int, seq uint64) grant.Grant {
	t.Helper()
	next, what := grant.LoggedIn(g, key, candidate(n, seq), turn(asked, noon))
	if what != grant.Fresh {
		t.Fatalf("login %d is %s", n, what)
	}
	next.Revision = g.Revision + 1
	return next
}

func TestLoginOrder(t *testing.T) {
	g := in(t, grant.Grant{}, 5, 5)
	if g.Version != noon.UnixMilli() || g.Status != grant.Unproven || !g.Pair.Refresh.IsZero() {
		t.Fatalf("first login: %+v", g)
	}
	for name, record := range map[string]grant.Grant{
		"candidate": g,
		"proven":    g.AsCandidate().Proven(turn(asked, noon)),
	} {
		older := map[string]grant.Arrival{"candidate": grant.Fresh, "proven": grant.Outdated}[name]
		for seq, want := range map[uint64]grant.Arrival{4: older, 5: grant.Stored, 6: grant.Fresh} {
			_, what := grant.LoggedIn(record, key, candidate(int(seq), seq), turn(asked, noon))
			if what != want {
				t.Errorf("%s: login %d after 5 is %s", name, seq, what)
			}
		}
		c := candidate(9, 1)
		c.Login.Stream = noon.Add(time.Hour)
		later, what := grant.LoggedIn(record, key, c, turn(asked, noon))
		if what != grant.Fresh || later.Version <= record.Version {
			t.Errorf("%s: a login in a new LOGINS stream is %s", name, what)
		}
	}
}

// A login that comes late, since it was put off, has its turn as long as no newer login was proven:
// one that was not may be false.
func TestALoginThatComesLateHasItsTurn(t *testing.T) {
	waits := in(t, signedIn(t, 5), 9, 9)
	false9 := waits.AsCandidate().Rejected(turn(asked, noon))
	false9.Revision = waits.Revision + 1
	for name, g := range map[string]grant.Grant{
		"a newer one waits":     waits,
		"a newer one was false": false9,
	} {
		for seq, want := range map[uint64]grant.Arrival{
			4: grant.Outdated,
			5: grant.Stored,
			7: grant.Fresh,
			9: grant.Stored,
		} {
			_, what := grant.LoggedIn(g, key, candidate(int(seq), seq), turn(asked, noon))
			if what != want {
				t.Errorf("%s: login %d is %s, want %s", name, seq, what, want)
			}
		}
		late := in(t, g, 7, 7)
		_, what := grant.LoggedIn(late, key, candidate(7, 7), turn(asked, noon))
		if what != grant.Stored {
			t.Errorf("%s: delivered again it is %s", name, what)
		}
		_, what = grant.LoggedIn(late, key, candidate(9, 9), turn(asked, noon))
		if what != grant.Stored {
			t.Errorf("%s: the newer one, delivered again, is %s", name, what)
		}
	}
	// The newer one has its turn first, and the late one if that fails.
	late := in(t, waits, 7, 7)
	if c := late.Candidate; c.Login.Sequence != 9 || c.Next == nil || c.Next.Login.Sequence != 7 {
		t.Fatalf("in turn is %d", c.Login.Sequence)
	}
	rejected := late.AsCandidate().Rejected(turn(asked, noon)).Candidate
	if rejected == nil || rejected.Login.Sequence != 7 {
		t.Errorf("after the newer one failed: %+v", rejected)
	}
	proven := late.AsCandidate().Proven(turn(asked, noon))
	if proven.Login.Sequence != 9 || proven.Candidate != nil {
		t.Errorf("after the newer one was proven: %+v", proven)
	}
}

// A login is believed when the provider has named its user: until then what is proven stays as it
// is, and is what the record says of itself.
func TestALoginIsACandidateUntilItIsProven(t *testing.T) {
	before := live(20 * time.Minute)
	before.Login = grant.Position{Stream: noon.Add(-time.Hour), Sequence: 1}
	g := in(t, before, 1, 9)
	if g.Pair != before.Pair || g.Status != grant.Live || !g.NextDueAt.Equal(before.NextDueAt) ||
		g.Mark().Token != before.Fingerprint() {
		t.Errorf("the proven side changed: %+v", g)
	}
	if !g.Due().At.Equal(noon) {
		t.Errorf("the candidate is due %v", g.Due().At)
	}
	c := g.AsCandidate()
	if !same(c.Pair, login(1)) || c.Mark() != g.Mark() || !reflect.DeepEqual(c.AsStored(), g) {
		t.Errorf("turned round and back: %+v", c.AsStored())
	}
	won, write := c.Resumed(turn(asked, noon)).WithProfile(turn(asked, noon), before.Profile)
	if !write || !same(won.Pair, login(1)) || won.Candidate != nil || won.OnCandidate() ||
		won.Status != grant.Live || won.Login.Sequence != 9 || won.Version <= g.Version {
		t.Errorf("proven: write %v, %+v", write, won)
	}
	lost := c.Rejected(turn(asked, noon))
	if lost.Pair != before.Pair || lost.Candidate != nil || lost.Status != grant.Live ||
		!lost.NextDueAt.Equal(before.NextDueAt) {
		t.Errorf("rejected: %+v", lost)
	}
	nothing := in(t, grant.Grant{}, 1, 9).AsCandidate().Rejected(turn(asked, noon))
	if nothing.Status != grant.Forgotten || nothing.Disproven.Sequence != 9 {
		t.Errorf("rejected where nothing was proven: %+v", nothing)
	}
}

// An app that publishes a login again must not bring spent tokens back, however often they were
// rotated since.
func TestTheSameLoginAgainHasNoEffect(t *testing.T) {
	g := in(t, grant.Grant{}, 1, 1).AsCandidate().Proven(turn(asked, noon))
	for n := range 3 {
		again := candidate(1, uint64(10+n))
		next, what := grant.LoggedIn(g, key, again, turn(asked, noon))
		if what != grant.Repeated || !reflect.DeepEqual(next, g) {
			t.Errorf("after %d rotations the same tokens are %s", n, what)
		}
		g = g.Rotated(turn(due, noon), tokens(n), g.Fingerprint())
		g.Revision++
	}
	older := candidate(2, 20)
	older.Login.SealedAt = noon.Add(-6 * time.Minute)
	if _, what := grant.LoggedIn(g, key, older, turn(asked, noon)); what != grant.Repeated {
		t.Errorf("sealed before the stored login: %s", what)
	}
	_, what := grant.LoggedIn(in(t, g, 3, 30), key, candidate(3, 31), turn(asked, noon))
	if what != grant.Repeated {
		t.Errorf("the candidate's own tokens again: %s", what)
	}
}

// A publisher of many logins cannot keep a user's proven tokens from being renewed.
func TestProvenTokensComeFirstWhenTheyAreDue(t *testing.T) {
	loginWake := grant.Work{Cause: candidate(1, 9).Cause}
	waiting := func(g grant.Grant) grant.Grant {
		c := *g.Candidate
		c.NextDueAt = noon.Add(time.Minute)
		g.Candidate = &c
		return g
	}
	overdue := func(g grant.Grant) grant.Grant {
		g.NextDueAt = noon.Add(-time.Minute)
		return g
	}
	doubted := in(t, live(20*time.Minute).Doubted(noon), 1, 9)
	bare := overdue(in(t, live(-time.Minute), 1, 9))
	bare.Pair.Refresh = secret.Value{}
	bare.Claim = &grant.Claim{Nonce: "of a worker that died", Presented: true}
	signedOut := in(t, live(0).SignedOut(turn(due, noon), grant.Verdict{}).Rested(turn(due, noon)),
		1, 9)
	asleep := in(t, live(0).Slept(turn(due, noon)), 1, 9)
	for name, tt := range map[string]struct {
		g         grant.Grant
		w         grant.Work
		candidate bool
		cause     string
	}{
		"a login's own wake": {
			in(t, live(20*time.Minute), 1, 9), loginWake, true, "login-1",
		},
		"not while the proven tokens are due": {
			in(t, live(time.Minute), 1, 9), loginWake, false, "",
		},
		"a request while a candidate is due": {
			in(t, live(20*time.Minute), 1, 9), grant.Work{Cause: asked}, true, "r1",
		},
		"a timer answers the login": {
			in(t, live(20*time.Minute), 1, 9), grant.Work{Cause: due}, true, "login-1",
		},
		"a timer of proven tokens that are due": {
			overdue(in(t, live(time.Minute), 1, 9)), grant.Work{Cause: due}, false, due.ID,
		},
		"a login that waits, proven tokens due": {
			waiting(in(t, live(time.Minute), 1, 9)), loginWake, false, "",
		},
		"a request while the candidate waits": {
			waiting(in(t, live(20*time.Minute), 1, 9)), grant.Work{Cause: asked}, false, "r1",
		},
		"proven tokens in doubt for longer": {
			overdue(doubted), grant.Work{Cause: due}, false, due.ID,
		},
		"proven tokens in doubt since then": {
			doubted, grant.Work{Cause: due}, true, "login-1",
		},
		"a login while proven tokens are doubted": {doubted, loginWake, true, "login-1"},
		"an ended access token that was alone":    {bare, grant.Work{Cause: asked}, true, "r1"},
		"a dead grant's request": {
			signedOut, grant.Work{Cause: asked}, true, "r1",
		},
		"a dormant user's request": {
			asleep, grant.Work{Cause: asked}, true, "r1",
		},
		"it, while the candidate waits": {
			waiting(asleep), grant.Work{Cause: asked}, false, "r1",
		},
		"a dormant user's timer, the same": {
			waiting(asleep), grant.Work{Cause: due}, true, "login-1",
		},
		"superseded tokens": {
			in(t, live(time.Minute), 1, 9),
			grant.Work{Cause: due, Mark: grant.Mark{Version: 1 << 60, Token: "x"}},
			false,
			due.ID,
		},
	} {
		g, w := tt.g.Turned(tt.w, policy, noon)
		if g.OnCandidate() != tt.candidate || tt.cause != "" && w.Cause.ID != tt.cause ||
			tt.cause == "" && w.Cause.Type != schema.CauseTimer {
			t.Errorf("%s: on the candidate %v, for %+v", name, g.OnCandidate(), w.Cause)
		}
	}
}

// A bad login that comes after a good one, before either is proven, does not drive it out.
func TestABadLoginDoesNotDriveOutAGoodOne(t *testing.T) {
	g := in(t, in(t, live(20*time.Minute), 1, 5), 2, 6)
	bad := g.AsCandidate()
	if !same(bad.Pair, login(2)) {
		t.Fatal("the newer login has not its turn first")
	}
	g = bad.Rejected(turn(asked, noon))
	good := g.AsCandidate()
	if !good.OnCandidate() || !same(good.Pair, login(1)) || !g.Due().At.Equal(noon) {
		t.Fatalf("after the bad one: %+v, due %v", good.Candidate, g.Due().At)
	}
	// The older one proven first, as its worker was at it: the newer one is still to be looked at.
	g = in(t, in(t, live(20*time.Minute), 1, 5), 2, 6)
	older, ok := in(t, live(20*time.Minute), 1, 5).AsCandidate().Beside(g)
	if !ok || !same(older.Pair, login(1)) {
		t.Fatal("the older login is not found behind the newer one")
	}
	won := older.Proven(turn(asked, noon))
	if !same(won.Pair, login(1)) || won.Candidate == nil || !same(won.Candidate.Pair, login(2)) {
		t.Errorf("the older one proven: %+v", won.Candidate)
	}
	if won := g.AsCandidate().Proven(turn(asked, noon)); won.Candidate != nil {
		t.Error("an older login outlives the proof of a newer one")
	}
	for n := range 20 {
		g = in(t, g, 10+n, uint64(10+n))
	}
	if raw, err := json.Marshal(g.Candidate); err != nil || len(raw) > 8<<10 {
		t.Errorf("twenty logins take %d bytes of the record, %v", len(raw), err)
	}
}

// No token of a login is presented as long as its access token can name the user.
func TestACandidateIsAskedBeforeItIsPresented(t *testing.T) {
	g := in(t, grant.Grant{}, 1, 9).AsCandidate()
	w := grant.Work{Cause: candidate(1, 9).Cause, Want: schema.WantTokens, MinValid: 24 * time.Hour}
	if step := grant.Decide(&g, w, policy, noon); step != grant.Sync {
		t.Errorf("a good access token: %s", step)
	}
	if step := grant.Decide(&g, w, policy, noon.Add(30*time.Minute)); step != grant.Refresh {
		t.Errorf("an access token that has ended: %s", step)
	}
	w.Refused = g.Pair.Access.Fingerprint()
	if step := grant.Decide(&g, w, policy, noon); step != grant.Refresh {
		t.Errorf("an access token that was refused: %s", step)
	}
}

// An erasure leaves the version and the place of the logins before it, and nothing else.
func TestErasedKeepsOlderLoginsOut(t *testing.T) {
	g := in(t, live(20*time.Minute), 1, 9)
	upTo := grant.Position{Stream: noon, Sequence: 12, Time: noon}
	e := g.Erased(key, upTo, turn(asked, noon))
	later := in(t, g, 2, 13)
	if kept := later.Erased(key, upTo, turn(asked, noon)); kept.Status != grant.Unproven ||
		kept.Candidate == nil || !same(kept.Candidate.Pair, login(2)) ||
		kept.Candidate.Next != nil || !kept.Pair.Refresh.IsZero() || kept.Profile != "" {
		t.Errorf("a login after the erasure, not proven yet: %+v", kept.Candidate)
	}
	proven := later.AsCandidate().Proven(turn(asked, noon))
	if kept := proven.Erased(key, upTo, turn(asked, noon)); !reflect.DeepEqual(kept, proven) {
		t.Error("an erasure takes a login that came after it")
	}
	for what, x := range map[string]struct {
		g    grant.Grant
		want []secret.Value
	}{
		"proven, and a candidate": {g, []secret.Value{g.Pair.Refresh, g.Candidate.Pair.Refresh}},
		"a later candidate": {
			later, []secret.Value{g.Pair.Refresh, g.Candidate.Pair.Refresh},
		},
		"later proven": {proven, nil},
		"erased":       {e, nil},
	} {
		if got := x.g.Revocable(upTo); !slices.EqualFunc(got, x.want, secret.Value.Equal) {
			t.Errorf("%s: revokes %d tokens, want %d", what, len(got), len(x.want))
		}
	}
	if e.Status != grant.Forgotten || e.Version <= g.Version ||
		e.NextDueAt.Sub(noon) < 7*24*time.Hour {
		t.Errorf("%+v", e)
	}
	kept := e
	kept.Key, kept.Revision, kept.Version = grant.Key{}, 0, 0
	kept.Status, kept.SavedBy = "", ""
	kept.Login, kept.NextDueAt = grant.Position{}, time.Time{}
	if !reflect.DeepEqual(kept, grant.Grant{}) || e.Login.Token != "" {
		t.Errorf("more than that was kept: %+v", kept)
	}
	for seq, want := range map[uint64]grant.Arrival{
		9:  grant.Outdated,
		11: grant.Outdated,
		12: grant.Stored,
		13: grant.Fresh,
	} {
		if _, what := grant.LoggedIn(e, key, candidate(2, seq), turn(asked, noon)); what != want {
			t.Errorf("login %d after an erasure up to 12 is %s", seq, what)
		}
	}
	if back := in(t, e, 1, 13); back.Status != grant.Unproven || back.Version <= e.Version {
		t.Errorf("after a new login %+v", back)
	}
}

// What one source calls 42 is not what another one does, and neither is what another sender says
// in its name.
func TestACommandIsItsSenderItsSourceAndItsID(t *testing.T) {
	all := []schema.Cause{
		{ID: "42", Source: "/crm"}, {ID: "42", Source: "/billing"},
		{ID: "42", Source: "/crm", Sender: "crm"}, {ID: "42", Source: "/crm", Sender: "shop"},
	}
	for i, a := range all {
		for _, b := range all[i+1:] {
			if grant.SameCause(a, b) || grant.OutcomeID(key, a) == grant.OutcomeID(key, b) ||
				grant.RejectionID(key, a) == grant.RejectionID(key, b) {
				t.Errorf("%+v and %+v share an identity", a, b)
			}
		}
		if !grant.SameCause(a, a) {
			t.Errorf("%+v is another command than itself", a)
		}
	}
	// As versions without senders stored it.
	if id := grant.OutcomeID(key, all[0]); id != "REcMW_lbeDrD8cQuH_9Xnw" {
		t.Errorf("the id of a command without a sender has become %s", id)
	}
}

// A sign-out, too, is of one sender's command.
func TestASignOutIsOfItsSender(t *testing.T) {
	ids := map[string]bool{}
	for _, sender := range []string{"", "crm", "shop"} {
		of := asked
		of.Sender = sender
		ids[live(0).SignedOut(turn(of, noon), grant.Verdict{}).Pending.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("the sign-outs of three senders' commands have %d ids", len(ids))
	}
}

// What a version before stored under an id without the sender is found under the present id, for
// the sender in its cause alone.
func TestOutcomesOfBeforeAreFound(t *testing.T) {
	of := schema.Cause{ID: "42", Source: "/crm", Sender: "shop"}
	before, other := of, of
	before.Sender, other.Sender = "", "crm"
	out := func(id string, c schema.Cause) schema.Event {
		data, err := json.Marshal(schema.Rejected{Cause: c})
		if err != nil {
			t.Fatal(err)
		}
		return schema.Event{ID: id, Data: data}
	}
	for name, id := range map[string]func(grant.Key, schema.Cause) string{
		"outcome": grant.OutcomeID, "rejection": grant.RejectionID,
	} {
		if !grant.IsOutcome(key, out(id(key, before), of), id(key, of)) {
			t.Errorf("%s of before: not found", name)
		}
		if !grant.IsOutcome(key, out(id(key, of), of), id(key, of)) {
			t.Errorf("%s: not found", name)
		}
		if grant.IsOutcome(key, out(id(key, before), other), id(key, of)) {
			t.Errorf("%s of another sender, of before: taken for this one's", name)
		}
		if grant.IsOutcome(key, out(id(key, before), before), id(key, of)) {
			t.Errorf("%s without a sender: taken for this one's", name)
		}
	}
	signed := live(0).SignedOut(turn(of, noon), grant.Verdict{})
	unnamed := live(0).SignedOut(turn(before, noon), grant.Verdict{})
	e := signed.Event("/renewd", noon, "")
	e.ID = unnamed.Pending.ID
	if !grant.IsOutcome(key, e, signed.Pending.ID) {
		t.Error("sign-out of before: not found")
	}
}

// A sign-out is told also where the event that led to it was answered before and published again.
func TestASignOutHasAnIDOfItsOwn(t *testing.T) {
	out := live(0).SignedOut(turn(asked, noon), grant.Verdict{})
	if out.Pending.ID == grant.OutcomeID(key, asked) {
		t.Error("a sign-out has the id of any other outcome of its cause")
	}
}

// An outcome that was decided stays in the record until it is known to have been published.
func TestAnOutcomeIsOwedUntilItIsTold(t *testing.T) {
	dead := live(0).SignedOut(turn(due, noon), grant.Verdict{Reason: schema.ReasonRevoked})
	if dead.NextDueAt.IsZero() {
		t.Error("the reconciler passes over a sign-out that nobody was told of")
	}
	id := dead.Pending.ID
	next := dead.Resumed(turn(asked, noon))
	if next.Pending != nil || len(next.Owed) != 1 || next.Owed[0].ID != id {
		t.Fatalf("owed %+v", next.Owed)
	}
	again := next.Failed(turn(asked, noon), grant.Failure{Reason: "x", Own: true, Final: true})
	if len(again.Owed) != 1 {
		t.Errorf("owed after one more change %+v", again.Owed)
	}
	told := turn(asked, noon)
	told.Told = []string{id}
	if next := dead.Resumed(told); len(next.Owed) != 0 {
		t.Errorf("owed though it was told: %+v", next.Owed)
	}
	if rested := dead.Rested(told); !rested.NextDueAt.IsZero() || rested.Version != dead.Version {
		t.Errorf("rested %+v", rested)
	}
}

// A timer for a time that has passed fires at once: a sync that changes nothing must not set the
// same one again.
func TestASyncNeverLeavesADueTimeInThePast(t *testing.T) {
	g := live(20 * time.Minute)
	g.NextDueAt = noon.Add(-time.Minute) // a margin was lowered, or an operator wanted it now
	next, write := g.Resumed(turn(due, noon)).WithProfile(turn(due, noon), g.Profile)
	if !write || !next.NextDueAt.After(noon) {
		t.Errorf("write %v, due %v", write, next.NextDueAt)
	}
	held := live(20 * time.Minute)
	held.Verdict = &grant.Verdict{
		Fingerprint: held.Fingerprint(),
		At:          noon.Add(-time.Minute),
		Again:       noon,
	}
	held = held.Held(turn(due, noon), grant.Failure{Reason: "x"})
	if wait := held.NextDueAt.Sub(noon); wait < policy.ConfirmMin/3 {
		t.Errorf("a refusal that is held is looked at again after %v, "+
			"and could not be confirmed then", wait)
	}
}

// The third refusal of a user counts also where all timers are late.
func TestALateThirdRefusalIsFinal(t *testing.T) {
	fault := &grant.Fault{Class: grant.Permanent, Reason: schema.ReasonRevoked}
	g, _ := live(0).Refused(turn(due, noon), fault, new(live(0)).Fingerprint())
	g, _ = g.Refused(turn(due, g.NextDueAt.Add(5*time.Minute)), fault, g.Fingerprint())
	_, done := g.Refused(turn(due, g.NextDueAt.Add(5*time.Minute)), fault, g.Fingerprint())
	if !done {
		t.Error("with timers five minutes late nobody is ever told")
	}
}

// A doubt is cleared up soon, even if other work has just had a success with this grant.
func TestASuccessDoesNotPutOffADoubt(t *testing.T) {
	g := live(20*time.Minute).Doubted(noon).Failed(turn(asked, noon), grant.Failure{Reason: "x"})
	soon := g.NextDueAt
	next, write := g.Resumed(turn(due, noon)).
		WithProfile(turn(due, noon), profile(schema.Profile{ID: "u17", Email: "new@example.com"}))
	if !write || !next.NextDueAt.Equal(soon) {
		t.Errorf("put off from %v to %v", soon, next.NextDueAt)
	}
}

// The word of a provider, or of a publisher, that a token lives for years is not believed.
func TestLifetimesAreCapped(t *testing.T) {
	years := tokens(1)
	years.ExpiresIn = 60 * 365 * 24 * time.Hour
	next := live(0).Rotated(turn(due, noon), years, new(live(0)).Fingerprint())
	if next.NextDueAt.Sub(noon) > policy.MaxLifetime {
		t.Errorf("next renewal %v", next.NextDueAt)
	}
}

// A refresh token that came without a readable access token is kept, and used at once.
func TestARefreshTokenAloneIsKept(t *testing.T) {
	alone := tokens(1)
	alone.Access = secret.Value{}
	next := live(0).Rotated(turn(due, noon), alone, new(live(0)).Fingerprint())
	if next.Pair.Refresh.Reveal() != "refresh-1" ||
		grant.Decide(&next, grant.Work{Cause: asked}, policy, next.NextDueAt) != grant.Refresh {
		t.Errorf("%+v", next)
	}
}

// Without a refresh token one 401 does not sign the user out, and three do.
func TestARefusedAccessTokenIsConfirmed(t *testing.T) {
	g := live(20 * time.Minute)
	g.Pair.Refresh = secret.Value{}
	access := g.Pair.Access.Fingerprint()
	fault := &grant.Fault{
		Class:  grant.Permanent,
		Op:     "userinfo",
		Status: 401,
		Code:   "401",
		Reason: schema.ReasonNoRefreshToken,
	}
	now := noon
	for n := 1; ; n++ {
		next, done := g.Refused(turn(due, now), fault, access)
		if done {
			if n != 3 || next.Status != grant.ReauthRequired {
				t.Errorf("after %d refusals %s", n, next.Status)
			}
			break
		}
		if grant.Decide(&next, grant.Work{Cause: due}, policy, next.NextDueAt) != grant.Sync {
			t.Fatalf("refusal %d is not confirmed by asking again", n)
		}
		g, now = next, next.NextDueAt
	}
	g, _ = live(20*time.Minute).Refused(turn(due, noon), fault, access)
	well, write := g.Resumed(turn(due, noon)).WithProfile(turn(due, noon), g.Profile)
	if !write || well.Verdict != nil {
		t.Error("a refusal of the access token outlives a sync with it")
	}
}

// The tokens of both sides are sealed in one blob, and nothing of them is in what else is stored.
func TestSealedTokensHoldBothSides(t *testing.T) {
	g := in(t, in(t, live(20*time.Minute), 0, 8), 1, 9)
	sealed, err := grant.SealTokens(plain{}, &g, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(g.Candidate)
	if err != nil {
		t.Fatal(err)
	}
	var back grant.Candidate
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	opened := g
	opened.Pair, opened.Candidate = grant.Pair{}, &back
	err = grant.OpenTokens(plain{}, &opened, sealed, grant.Beside{})
	if err != nil || !same(opened.Pair, g.Pair) || !same(opened.Candidate.Pair, login(1)) {
		t.Errorf("opened %+v, %v", opened, err)
	}
	if !same(opened.Candidate.Next.Pair, login(0)) {
		t.Error("the older login's tokens did not come back")
	}
	opened.Candidate.Pair, opened.Candidate.Next.Pair = g.Candidate.Pair, g.Candidate.Next.Pair
	if !reflect.DeepEqual(opened.Candidate, g.Candidate) {
		t.Errorf("the candidate came back as %+v", *opened.Candidate)
	}
}

type plain struct{}

func (plain) Seal(b, _ []byte) ([]byte, error) { return b, nil }
func (plain) Open(b, _ []byte) ([]byte, error) { return b, nil }
