package login_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/consumers/login"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// logouts is what a logout meets in a world.
type logouts struct {
	older         bool // a login of before the logout is on its way
	told          []schema.Event
	publishedUpTo grant.Mark
	disarmed      int
	parked        *grant.Parcel
	revoked       []string
	provider      func(ctx context.Context, token string) error
	fails         string // the step that fails, once
	mu            sync.Mutex
}

// waiting is how many commands are put off.
func (w *world) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.deferred)
}

// errKilled is a worker that dies at a step.
var errKilled = errors.New("killed")

func (w *world) step(name string) error {
	if w.fails != name {
		return nil
	}
	w.fails = ""
	return errKilled
}

func (w *world) revoke(ctx context.Context, provider string, token secret.Value) error {
	if w.provider != nil {
		if err := w.provider(ctx, token.Reveal()); err != nil {
			return err
		}
	}
	w.revoked = append(w.revoked, token.Reveal())
	return w.step("revoke")
}

func (w *world) OlderLoginWaits(context.Context, grant.Key, grant.Position) (bool, error) {
	w.lookedForLogins.Store(true)
	return w.older, nil
}

func (w *world) PublishedUpTo(context.Context, grant.Key) (grant.Mark, error) {
	return w.publishedUpTo, nil
}

// Answered sees the last outcome of each type, as the engine does.
func (w *world) Answered(_ context.Context, _ grant.Key, id string) (bool, error) {
	last := map[schema.Type]string{}
	for _, e := range w.told {
		last[e.Type] = e.ID
	}
	return slices.Contains(slices.Collect(maps.Values(last)), id), nil
}

func (w *world) AnsweredSince(
	_ context.Context, _ grant.Key, id string, since time.Time,
) (bool, error) {
	return slices.ContainsFunc(w.told, func(e schema.Event) bool {
		return e.ID == id && !e.Time.Before(since)
	}), nil
}

func (w *world) PublishMarked(_ context.Context, e schema.Event, m grant.Mark) error {
	if err := w.step("publish"); err != nil {
		return err
	}
	same := func(other schema.Event) bool { return other.ID == e.ID }
	if !slices.ContainsFunc(w.told, same) { // as the stream does
		w.told, w.publishedUpTo = append(w.told, e), w.publishedUpTo.Newest(m)
	}
	return w.step("published")
}

func (w *world) Disarm(context.Context, grant.Key) error {
	w.disarmed++
	return w.step("disarm")
}

func (w *world) Parked(context.Context, grant.Key) (grant.Parcel, bool, error) {
	if w.parked == nil {
		return grant.Parcel{}, false, nil
	}
	return *w.parked, true, nil
}

type plain struct{}

func (plain) Seal(b, _ []byte) ([]byte, error) { return b, nil }
func (plain) Open(b, _ []byte) ([]byte, error) { return b, nil }

// logout is the logout n, as the stream took it at the world's time.
func (w *world) logout(n int, body string) *runner.Message {
	h := schema.Header{}
	h.Set("ce-id", fmt.Sprintf("logout-%d", n))
	h.Set("ce-source", "/app")
	h.Set("ce-specversion", "1.0")
	h.Set("ce-type", string(schema.UserLogout))
	return &runner.Message{
		Subject: "user.logout.acme.u17", Header: h, Data: []byte(body), Stream: "LOGINS",
		Sequence: uint64(n), Time: w.now, Deliveries: 1,
	}
}

// signIn has the login n proven.
func (w *world) signIn(c *login.Consumer, n int) grant.Grant {
	w.t.Helper()
	if err := c.Handle(w.t.Context(), message(n, w.now, w.now)); err != nil {
		w.t.Fatal(err)
	}
	return w.prove()
}

// must handles a message as a runner does: again until it is settled, some times.
func (w *world) must(c *login.Consumer, m *runner.Message) {
	w.t.Helper()
	var err error
	for range 4 {
		if err = c.Handle(w.t.Context(), m); err == nil {
			return
		}
		m.Deliveries++
	}
	w.t.Fatal(err)
}

// signedOut is what the one outcome says that was told.
func (w *world) signedOut() schema.SignedOut {
	w.t.Helper()
	return outcome[schema.SignedOut](w)
}

func TestALogoutDropsTheTokensAndTells(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	before := w.signIn(c, 1)
	w.must(c, w.logout(2, `{"reason":"by hand"}`))
	g := w.stored()
	if g.Status != grant.SignedOff || g.Pair != (grant.Pair{}) || !g.Resting() || w.disarmed != 1 {
		t.Errorf("%+v, disarmed %d", g, w.disarmed)
	}
	d := w.signedOut()
	if d.Cause.ID != "logout-2" || d.Reason != "by hand" || d.Revoked || d.RevokeError != "" ||
		d.Version <= before.Version || len(w.revoked) > 0 {
		t.Errorf("%+v", d)
	}
	w.must(c, w.logout(3, ``)) // another one: idempotent, and answered
	if g := w.stored(); g.Status != grant.SignedOff || len(w.told) != 2 {
		t.Errorf("%+v, told %d", g.Status, len(w.told))
	}
}

// Promise 5: by their order in the stream, whatever order they are handled in.
func TestANewerLoginWinsOverALogout(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	newest := w.signIn(c, 3)
	w.must(c, w.logout(2, `{"revoke":true}`))
	if g := w.stored(); g.Revision != newest.Revision || len(w.told)+len(w.revoked)+w.disarmed > 0 {
		t.Errorf("the newer login was touched: %+v", g)
	}
	w = newWorld(t)
	c = w.consumer()
	w.signIn(c, 1)
	if err := c.Handle(t.Context(), message(3, w.now, w.now)); err != nil {
		t.Fatal(err)
	}
	w.must(c, w.logout(2, `{"revoke":true}`))
	g := w.stored()
	if g.Status != grant.SignedOff || g.Candidate == nil || w.disarmed > 0 ||
		!slices.Equal(w.revoked, []string{"refresh-1"}) {
		t.Errorf("%s, candidate %v, disarmed %d, revoked %v",
			g.Status, g.Candidate, w.disarmed, w.revoked)
	}
	if g = w.prove(); g.Status != grant.Live || g.Pair.Refresh.Reveal() != "refresh-3" {
		t.Errorf("the newer login did not win: %+v", g)
	}
}

// A logout that was put off ends the session before it, also where a newer login was proven false
// meanwhile.
func TestALogoutPutOffIsNotLostToALoginProvenFalse(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.provider = func(context.Context, string) error {
		return &grant.Fault{Class: grant.Throttled, Op: "revoke"}
	}
	err := c.Handle(t.Context(), w.logout(2, `{"revoke":true}`))
	if err != nil || len(w.deferred) != 1 {
		t.Fatalf("not put off: %v", err)
	}
	if err := c.Handle(t.Context(), message(3, w.now, w.now)); err != nil {
		t.Fatal(err)
	}
	turn := grant.Turn{Nonce: "p", Now: w.now, Policy: new(grant.Policy{}.WithDefaults())}
	if _, err := w.store.Save(t.Context(), w.stored().AsCandidate().Rejected(turn)); err != nil {
		t.Fatal(err)
	}
	w.provider = nil
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil {
		t.Fatal(err)
	}
	g := w.stored()
	if g.Status != grant.SignedOff || !slices.Equal(w.revoked, []string{"refresh-1"}) {
		t.Errorf("%s, revoked %v", g.Status, w.revoked)
	}
	if d := w.signedOut(); d.Cause.ID != "logout-2" {
		t.Errorf("%+v", d)
	}
}

// Killed at any step, and delivered again, a logout is carried out and told once.
func TestALogoutKilledAtEachStep(t *testing.T) {
	for _, step := range []string{"save", "saved", "publish", "published", "disarm", "revoke"} {
		w := newWorld(t)
		c := w.consumer()
		w.signIn(c, 1)
		w.fails = step
		m := w.logout(2, `{"revoke":true}`)
		for range 4 {
			if err := c.Handle(t.Context(), m); err == nil && new(w.stored()).Resting() {
				break
			}
			w.now, m.Deliveries = w.now.Add(revokeClaimOver), m.Deliveries+1
		}
		if w.fails != "" {
			t.Fatalf("%s: no such step", step)
		}
		if g := w.stored(); g.Status != grant.SignedOff || !g.Resting() {
			t.Errorf("%s: %+v", step, g)
		}
		if d := w.signedOut(); d.Cause.ID != "logout-2" || step != "revoke" && !d.Revoked {
			t.Errorf("%s: %+v", step, d)
		}
	}
}

// revokeClaimOver is longer than a claim for a revocation lasts.
const revokeClaimOver = 20 * time.Second

func TestALogoutOfAnUnknownUserIsAnswered(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	m := w.logout(2, ``)
	w.fails = "published"
	w.must(c, m)
	d, err := schema.Data[schema.RefreshFailed](w.told[0])
	if err != nil || d.Reason != schema.ReasonUnknownGrant || d.Cause.ID != "logout-2" ||
		len(w.told) != 1 {
		t.Errorf("%+v, %v, told %d times", d, err, len(w.told))
	}
	if _, err := w.store.Load(t.Context(), key); !errors.Is(err, grant.ErrNotFound) {
		t.Errorf("a record came to be: %v", err)
	}
}

// A login of before the logout that is not stored yet would sign the user in after it.
func TestALogoutWaitsForALoginBeforeIt(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.older = true
	err := c.Handle(t.Context(), w.logout(3, ``))
	if err == nil || w.stored().Status != grant.Live {
		t.Errorf("it did not wait: %v", err)
	}
	if err := c.Handle(t.Context(), message(2, w.now, w.now)); err != nil {
		t.Fatal(err)
	}
	w.older = false
	w.must(c, w.logout(3, ``))
	if g := w.stored(); g.Status != grant.SignedOff || g.Candidate != nil {
		t.Errorf("%s, candidate %v", g.Status, g.Candidate)
	}
	// The login is answered by a rejection, before the logout is told.
	if len(w.told) != 2 || w.told[0].Type != schema.MessageRejected ||
		w.told[1].Type != schema.UserSignedOut {
		t.Errorf("told %+v", w.told)
	}
}

// The same logout, published again by an outbox, does not end the session of a newer login.
func TestALogoutPublishedAgainLaterIsAReplay(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.must(c, w.logout(2, ``))
	w.signIn(c, 3)
	m := w.logout(2, ``)
	m.Sequence = 9
	w.lookedForLogins.Store(false)
	w.must(c, m)
	if w.lookedForLogins.Load() {
		t.Error("a repeat looked for older logins, which removes those that were put off")
	}
	if g := w.stored(); g.Status != grant.Live || len(w.told) != 1 {
		t.Errorf("%s, told %d", g.Status, len(w.told))
	}
}

// What was decided before is told first, and what is out is not told again.
func TestALogoutTellsWhatIsOwedFirst(t *testing.T) {
	for _, out := range []bool{false, true} {
		w := newWorld(t)
		c := w.consumer()
		g := w.signIn(c, 1)
		g.Cause = schema.Cause{ID: "earlier", Source: "/app"}
		g.Pending = &grant.Pending{
			ID: "earlier", Type: schema.UserSynced, Version: g.Version, Data: json.RawMessage(`{}`),
		}
		if _, err := w.store.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		if out {
			w.publishedUpTo = g.Mark()
		}
		w.must(c, w.logout(2, ``))
		var ids []schema.Type
		for _, e := range w.told {
			ids = append(ids, e.Type)
		}
		want := []schema.Type{schema.UserSynced, schema.UserSignedOut}
		if out {
			want = want[1:]
		}
		if !slices.Equal(ids, want) {
			t.Errorf("out %v: told %v, want %v", out, ids, want)
		}
	}
}

// A record that cannot be read does not keep a user signed in.
func TestALogoutDropsARecordThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	old := w.signIn(c, 1)
	w.load = func(g grant.Grant, err error) (grant.Grant, error) {
		if g.Revision != old.Revision {
			return g, err
		}
		g = grant.Grant{Key: key, Revision: g.Revision, Version: g.Version, Login: g.Login}
		return g, fmt.Errorf("load: %w", grant.ErrUnreadable)
	}
	w.must(c, w.logout(2, `{"revoke":true}`))
	d := w.signedOut()
	if w.stored().Status != grant.SignedOff || d.RevokeError != schema.RevokeUnreadable {
		t.Errorf("%+v", d)
	}
}

func TestALogoutRevokesFirst(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	w.signIn(c, 1)
	w.provider = func(context.Context, string) error {
		if g := w.stored(); g.Status != grant.Live || g.Claim == nil {
			t.Errorf("revoked while the grant is %s, claim %v", g.Status, g.Claim)
		}
		return nil
	}
	w.must(c, w.logout(2, `{"revoke":true}`))
	d := w.signedOut()
	if !d.Revoked || d.RevokeError != "" || !slices.Equal(w.revoked, []string{"refresh-1"}) {
		t.Errorf("%+v, revoked %v", d, w.revoked)
	}
	if g := w.stored(); g.Claim != nil {
		t.Errorf("the claim stays: %+v", g.Claim)
	}
}

// A pair that is in flight is saved, and is the one that is revoked; one that was parked as well.
func TestALogoutRevokesThePairInFlight(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	before := w.signIn(c, 1)
	ctx := t.Context()
	claimed, _, err := w.store.Claim(ctx, key, grant.ClaimRequest{
		Nonce: "worker", For: 10 * time.Second, Presented: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	m := w.logout(2, `{"revoke":true}`)
	if err := c.Handle(ctx, m); err == nil || len(w.revoked)+len(w.told) > 0 {
		t.Fatalf("it did not wait: %v, revoked %v", err, w.revoked)
	}
	policy := grant.Policy{}.WithDefaults()
	answer := grant.Tokens{
		Access: secret.New("a"), Refresh: secret.New("rotated"), SentAt: w.now,
	}
	worker := grant.Turn{Nonce: "worker", Now: w.now, Policy: &policy}
	rotated := claimed.Rotated(worker, answer, before.Fingerprint())
	if _, err := w.store.Save(ctx, rotated); err != nil {
		t.Fatal(err)
	}
	pair := grant.Pair{Refresh: secret.New("parked")}
	sealed, err := grant.SealPair(plain{}, grant.PurposePark, key, 9, pair)
	if err != nil {
		t.Fatal(err)
	}
	w.parked = &grant.Parcel{Version: 9, Parent: rotated.Fingerprint(), Sealed: sealed}
	w.must(c, m)
	d := w.told[len(w.told)-1]
	if d.Type != schema.UserSignedOut || !slices.Equal(w.revoked, []string{"rotated", "parked"}) {
		t.Errorf("revoked %v, told %v", w.revoked, d.Type)
	}
}

// An outage of the provider holds a logout up for a minute, and no longer; what cannot work is not
// tried again.
func TestALogoutWithoutRevocationIsToldAsThat(t *testing.T) {
	down := &grant.Fault{Class: grant.Unsent, Op: "revoke"}
	settings := &grant.Fault{Class: grant.Config, Op: "revoke", Code: "invalid_client"}
	for name, tt := range map[string]struct {
		answer error
		want   string
		waits  bool
	}{
		"no endpoint": {
			fmt.Errorf("acme: %w", grant.ErrNoRevocation), schema.RevokeUnsupported, false,
		},
		"settings": {settings, "invalid_client", false},
		"down":     {down, schema.RevokeFailed, true},
	} {
		w := newWorld(t)
		c := w.consumer()
		w.signIn(c, 1)
		w.provider = func(context.Context, string) error { return tt.answer }
		if err := c.Handle(t.Context(), w.logout(2, `{"revoke":true}`)); err != nil {
			t.Fatalf("%s: it holds a place: %v", name, err)
		}
		if waits := len(w.deferred) > 0; waits != tt.waits {
			t.Errorf("%s: put off %v", name, waits)
		}
		for n := 0; len(w.told) == 0; n++ {
			if g := w.stored(); n > 10 || g.Status != grant.Live || g.Claim != nil {
				t.Fatalf("%s: after %d more tries: %+v", name, n, g)
			}
			if err := c.HandleDeferred(t.Context(), w.again()); err != nil {
				t.Fatal(err)
			}
		}
		d := w.signedOut()
		if d.Revoked || d.RevokeError != tt.want || w.stored().Status != grant.SignedOff {
			t.Errorf("%s: %+v", name, d)
		}
		if took := w.now.Sub(noon); took > 2*time.Minute {
			t.Errorf("%s: it took %v", name, took)
		}
	}
}

// Promise 7: a provider that hangs holds a few calls for some seconds, and nothing else.
func TestAProviderThatHangsHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := w.consumer()
		for n := range 5 {
			k := grant.Key{Provider: key.Provider, User: fmt.Sprint("u", n)}
			pair := grant.Pair{Refresh: secret.New("r")}
			g := grant.Grant{Key: k, Status: grant.Live, Pair: pair}
			if _, err := w.store.Save(t.Context(), g); err != nil {
				t.Fatal(err)
			}
		}
		w.provider = func(ctx context.Context, _ string) error {
			<-ctx.Done()
			return &grant.Fault{Class: grant.Ambiguous, Op: "revoke", Err: ctx.Err()}
		}
		done := make(chan error)
		began := time.Now()
		for n := range 5 {
			m := w.logout(n+2, `{"revoke":true}`)
			m.Subject = fmt.Sprint("user.logout.acme.u", n)
			go func() { done <- c.Handle(t.Context(), m) }()
		}
		synctest.Wait()
		if n := w.waiting(); n != 1 {
			t.Errorf("%d are put off at once, want the one for which there is no slot", n)
		}
		for range 5 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took > 6*time.Second || w.waiting() != 5 {
			t.Errorf("places were held for %v, %d are put off", took, w.waiting())
		}
	})
}

func TestALogoutThatCannotBeUnderstoodIsRejected(t *testing.T) {
	for body, field := range map[string]string{
		`{"revok":true}`: "revoke", `{"revoke":"yes"}`: "revoke", `{"reason":"a\u0000b"}`: "reason",
	} {
		w := newWorld(t)
		c := w.consumer()
		w.signIn(c, 1)
		if got := rejected(t, c.Handle(t.Context(), w.logout(2, body))); got != field {
			t.Errorf("%s: names %s", body, got)
		}
		if g := w.stored(); g.Status != grant.Live {
			t.Errorf("%s: %s", body, g.Status)
		}
	}
	w := newWorld(t)
	w.refuse = func(e schema.Event) error {
		return &schema.Malformed{
			Reason:  schema.RejectSender,
			Field:   "sender",
			Message: string(e.Type),
		}
	}
	if got := rejected(t, w.consumer().Handle(t.Context(), w.logout(2, ``))); got != "sender" {
		t.Errorf("names %s", got)
	}
}
