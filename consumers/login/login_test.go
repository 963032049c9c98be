package login_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers/login"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
)

var (
	noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key  = grant.Key{Provider: "acme", User: "u17"}
)

var errKeyMissing = errors.New("sealed with a key that is not in the keyring")

// world is a store and a stream in memory; a sealed login is the JSON of what is in it.
type world struct {
	t     *testing.T
	now   time.Time
	store grant.Store
	load  func(grant.Grant, error) (grant.Grant, error)

	lookedForLogins atomic.Bool // older ones than a logout, which removes those that were put off
	woken           []grant.Work
	deferred        []deferred
	missing         bool // the key that logins are sealed with
	logouts              // what logouts need of them
	refuse          func(schema.Event) error
	admit           func(context.Context, *runner.Message, schema.Event) error
}

type deferred struct {
	of        schema.Address
	at        time.Time
	position  grant.Position
	deferrals int
	header    schema.Header
	data      []byte
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: noon}
	w.store = storetest.NewMemory(func() time.Time { return w.now })
	return w
}

func (w *world) consumer() *login.Consumer {
	w.t.Helper()
	c, err := login.New(login.Config{
		Store:      storeOf{w.store, w},
		Stream:     w,
		Policies:   map[string]grant.Policy{key.Provider: {}},
		Open:       w.open,
		Refuse:     w.refuse,
		Admit:      w.admit,
		Revoke:     w.revoke,
		Cipher:     plain{},
		KeyMissing: func(err error) bool { return errors.Is(err, errKeyMissing) },
		Now:        func() time.Time { return w.now },
		Rand:       func() float64 { return 0.5 },
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) open(jwe string) (login.Opened, error) {
	if w.missing {
		return login.Opened{}, errKeyMissing
	}
	var sealed struct {
		Provider, User, Access, Refresh string
		At, Ends                        time.Time
		In                              time.Duration
	}
	if err := json.Unmarshal([]byte(jwe), &sealed); err != nil {
		return login.Opened{}, err
	}
	return login.Opened{
		Provider:  sealed.Provider,
		User:      sealed.User,
		SealedAt:  sealed.At,
		Access:    secret.New(sealed.Access),
		Refresh:   secret.New(sealed.Refresh),
		ExpiresAt: sealed.Ends,
		ExpiresIn: sealed.In,
	}, nil
}

// message is the login n, sealed at and taken by the stream at the given times.
func message(n int, sealed, took time.Time, more ...string) *runner.Message {
	inner := fmt.Sprintf(`{"Provider":"acme","User":"u17",`+
		`"Access":"access-%d","Refresh":"refresh-%d","At":%q%s}`,
		n, n, sealed.Format(time.RFC3339), strings.Join(more, ""))
	data, err := json.Marshal(schema.Login{Tokens: inner})
	if err != nil {
		panic(err)
	}
	// The sender's own time says whatever the sender wants.
	h := schema.Header{}
	h.Set("ce-id", fmt.Sprintf("login-%d", n))
	h.Set("ce-source", "/app")
	h.Set("ce-specversion", "1.0")
	h.Set("ce-type", string(schema.UserLogin))
	h.Set("ce-time", sealed.UTC().Format(time.RFC3339))
	return &runner.Message{
		Subject:    "user.login.acme.u17",
		Header:     h,
		Data:       data,
		Stream:     "LOGINS",
		Sequence:   uint64(n),
		Time:       took,
		Deliveries: 1,
	}
}

func (w *world) stored() grant.Grant {
	w.t.Helper()
	g, err := w.store.Load(context.Background(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// prove has the stored candidate win.
func (w *world) prove() grant.Grant {
	w.t.Helper()
	g := w.stored().AsCandidate().Proven(grant.Turn{
		Nonce:  "p",
		Now:    w.now,
		Policy: new(grant.Policy{}.WithDefaults()),
	})
	if _, err := w.store.Save(context.Background(), g); err != nil {
		w.t.Fatal(err)
	}
	return w.stored()
}

type storeOf struct {
	grant.Store
	w *world
}

func (s storeOf) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	if err := s.w.step("save"); err != nil {
		return 0, err
	}
	revision, err := s.Store.Save(ctx, g)
	return revision, errors.Join(err, s.w.step("saved"))
}

func (s storeOf) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	g, err := s.Store.Load(ctx, k)
	if s.w.load != nil {
		return s.w.load(g, err)
	}
	return g, err
}

func (w *world) Request(_ context.Context, _ grant.Key, work grant.Work) error {
	w.woken = append(w.woken, work)
	return nil
}

func (w *world) Newest(context.Context, grant.Key) (grant.Mark, error) { return grant.Mark{}, nil }

func (w *world) LoginsCreated(context.Context, uint64) (time.Time, error) {
	return noon.Add(-time.Hour), nil
}

func (w *world) DeferLogin(
	_ context.Context, of schema.Address, at time.Time, o grant.Position, n int, h schema.Header,
	data []byte,
) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deferred = append(w.deferred, deferred{of, at, o, n, h, data})
	return nil
}

func (w *world) ParseDeferred(
	string, schema.Header,
) (schema.Address, grant.Position, int, schema.Header, error) {
	d := w.deferred[len(w.deferred)-1]
	return d.of, d.position, d.deferrals, d.header, nil
}

// again is the last login that was put off, as it comes back.
func (w *world) again() *runner.Message {
	d := w.deferred[len(w.deferred)-1]
	w.now = d.at
	return &runner.Message{
		Subject:    "deferred.due.acme.u17",
		Header:     schema.Header{},
		Data:       d.data,
		Stream:     "RENEWALS",
		Sequence:   999,
		Time:       d.at,
		Deliveries: 1,
	}
}

// rejected is the field that a verdict names.
func rejected(t *testing.T, err error) string {
	t.Helper()
	var bad *schema.Malformed
	if !errors.As(err, &bad) {
		t.Fatalf("not rejected: %v", err)
	}
	return bad.Field
}

func TestALoginBecomesTheCandidateAndWakesItsGrant(t *testing.T) {
	w := newWorld(t)
	if err := w.consumer().Handle(t.Context(), message(1, noon, noon)); err != nil {
		t.Fatal(err)
	}
	g := w.stored()
	if g.Status != grant.Unproven || g.Candidate == nil ||
		g.Candidate.Pair.Refresh.Reveal() != "refresh-1" || len(w.woken) != 1 ||
		w.woken[0].Cause.ID != "login-1" {
		t.Errorf("%s, woken %v", g.Status, w.woken)
	}
}

// The time of a seal is held against the stream's, never against what the message says of itself.
func TestAnOldSealIsRefusedWhateverTheEventSays(t *testing.T) {
	for name, tt := range map[string]struct {
		sealed, took time.Time
		refused      bool
	}{
		"recorded 48 h ago":        {noon.Add(-48 * time.Hour), noon, true},
		"six minutes ago":          {noon.Add(-6 * time.Minute), noon, true},
		"four minutes ago":         {noon.Add(-4 * time.Minute), noon, false},
		"by a clock too far ahead": {noon.Add(6 * time.Minute), noon, true},
	} {
		w := newWorld(t)
		err := w.consumer().Handle(t.Context(), message(1, tt.sealed, tt.took))
		if tt.refused && rejected(t, err) != "tokens.iat" || !tt.refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The same login again, however long after and however often its tokens were rotated since, changes
// nothing and is answered.
func TestALoginPublishedAgainLaterIsAReplay(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	if err := c.Handle(t.Context(), message(1, noon, noon)); err != nil {
		t.Fatal(err)
	}
	g := w.prove()
	for n := range 2 {
		turn := grant.Turn{Nonce: "r", Now: w.now, Policy: new(grant.Policy{}.WithDefaults())}
		rotated := secret.New(fmt.Sprint("rotated-", n))
		g = g.Rotated(turn,
			grant.Tokens{Access: secret.New("a"), Refresh: rotated, SentAt: w.now},
			g.Fingerprint())
		if _, err := w.store.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		g = w.stored()
	}
	m := message(1, noon, noon.Add(3*time.Minute))
	m.Sequence = 7
	if err := c.Handle(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := w.stored(); got.Revision != g.Revision || len(w.woken) != 1 {
		t.Errorf("the record changed: candidate %v, woken %d times", got.Candidate, len(w.woken))
	}
	m = message(1, noon, noon.Add(3*time.Minute))
	m.Sequence = 8
	m.Header.Set("ce-id", "another event with the same tokens")
	if err := c.Handle(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if got := w.stored(); got.Revision != g.Revision || len(w.woken) != 2 {
		t.Errorf("the record changed: candidate %v, woken %d times", got.Candidate, len(w.woken))
	}
}

// A record that cannot be read is no reason to keep a user out.
func TestALoginReplacesARecordThatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	if err := c.Handle(t.Context(), message(1, noon, noon)); err != nil {
		t.Fatal(err)
	}
	old := w.prove()
	w.load = func(g grant.Grant, err error) (grant.Grant, error) {
		if g.Revision != old.Revision {
			return g, err
		}
		left := grant.Grant{Key: key, Revision: g.Revision, Version: g.Version, Login: g.Login}
		return left, fmt.Errorf("load: %w", grant.ErrUnreadable)
	}
	err := c.Handle(t.Context(), message(2, noon.Add(time.Minute), noon.Add(time.Minute)))
	if err != nil {
		t.Fatal(err)
	}
	g := w.stored()
	if g.Candidate == nil || g.Candidate.Pair.Refresh.Reveal() != "refresh-2" ||
		g.Version <= old.Version {
		t.Errorf("stored %v at %d after %d", g.Candidate, g.Version, old.Version)
	}
}

// Another hand that can write to the store, and has no key, cannot keep a user out for good by a
// login that no login is newer than.
func TestAForgedPlaceKeepsNobodyOut(t *testing.T) {
	later := noon.Add(2 * time.Minute)
	for what, forged := range map[string]grant.Position{
		"of a later stream":   {Stream: noon.Add(time.Hour), Sequence: 1, Time: noon},
		"without a time":      {Sequence: math.MaxUint64},
		"of the future":       {Sequence: math.MaxUint64, Time: noon.Add(time.Hour)},
		"of now, far at most": {Sequence: math.MaxUint64, Time: noon},
	} {
		w := newWorld(t)
		c := w.consumer()
		if err := c.Handle(t.Context(), message(1, noon, noon)); err != nil {
			t.Fatal(err)
		}
		g := w.prove()
		if forged.Stream.IsZero() {
			forged.Stream = g.Login.Stream
		}
		w.now, g.Login = later, forged
		if _, err := w.store.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		w.store.(*storetest.Memory).Damage(key, storetest.Altered)
		if err := c.Handle(t.Context(), message(2, later, later)); err != nil {
			t.Fatal(err)
		}
		if g := w.stored(); g.Candidate == nil || g.Candidate.Pair.Refresh.Reveal() != "refresh-2" {
			t.Errorf("%s: stored %+v", what, g)
		}
	}
}

// While keys are rotated, a worker without the new key leaves a login to the other workers, and
// holds no place with it. After an hour no worker has the key.
func TestALoginWaitsForItsKey(t *testing.T) {
	w := newWorld(t)
	w.missing = true
	c := w.consumer()
	m := message(1, noon, noon)
	if err := c.Handle(t.Context(), m); err != nil || len(w.woken) > 0 {
		t.Fatalf("it holds a place, or is handled: %v", err)
	}
	d := w.deferred[0]
	if d.position.Sequence != 1 || !d.position.Time.Equal(noon) || d.deferrals != 1 ||
		!d.at.After(noon) {
		t.Errorf("put off as %+v", d)
	}
	err := c.HandleDeferred(t.Context(), w.again())
	if err != nil || w.deferred[1].deferrals != 2 || w.deferred[1].position != d.position {
		t.Errorf("put off again: %v, %+v", err, w.deferred[1])
	}
	w.missing = false
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil {
		t.Fatal(err)
	}
	if g := w.stored(); g.Candidate == nil || g.Candidate.Login.Sequence != 1 || len(w.woken) != 1 {
		t.Errorf("stored %+v", g.Candidate)
	}
	w.missing, w.now = true, noon.Add(2*time.Hour)
	if field := rejected(t, c.Handle(t.Context(), message(2, noon, noon))); field != "tokens" {
		t.Errorf("rejected for %s", field)
	}
}

// A login that was put off is still older than one that came meanwhile.
func TestALoginThatWasPutOffDoesNotReplaceANewerOne(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	if err := c.PutOff(t.Context(), message(1, noon, noon), errKeyMissing); err != nil {
		t.Fatal(err)
	}
	if err := c.Handle(t.Context(), message(2, noon, noon)); err != nil {
		t.Fatal(err)
	}
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil {
		t.Fatal(err)
	}
	if g := w.stored(); g.Candidate.Login.Sequence != 2 {
		t.Errorf("the candidate is login %d", g.Candidate.Login.Sequence)
	}
}

// After an erasure no login of before it brings the user back, whenever it is handled.
func TestALoginOfBeforeAnErasureStaysOut(t *testing.T) {
	w := newWorld(t)
	erased := grant.Grant{}.Erased(key,
		grant.Position{Stream: noon.Add(-time.Hour), Sequence: 5, Time: noon},
		grant.Turn{Nonce: "f", Now: noon})
	if _, err := w.store.Save(t.Context(), erased); err != nil {
		t.Fatal(err)
	}
	c := w.consumer()
	if err := c.Handle(t.Context(), message(4, noon, noon)); err != nil {
		t.Fatal(err)
	}
	if g := w.stored(); g.Status != grant.Forgotten || len(w.woken) != 0 {
		t.Errorf("%s, woken %v", g.Status, w.woken)
	}
	err := c.Handle(t.Context(), message(6, noon, noon))
	if err != nil || w.stored().Candidate == nil {
		t.Errorf("a login of after it: %v", err)
	}
}

// No publisher can make a token live for years, or start its life later than the stream has seen
// it.
func TestAPublisherDoesNotDecideWhenAUserIsLookedAt(t *testing.T) {
	for name, tt := range map[string]struct {
		more   string
		sealed time.Time
		ends   time.Time
	}{
		"sixty years": {`,"In":1892160000000000000`, noon, noon.Add(24 * time.Hour)},
		"until 2084": {
			`,"Ends":"2084-01-01T00:00:00Z"`, noon, noon.Add(24 * time.Hour),
		},
		"by a clock that is fast": {
			`,"In":1800000000000`, noon.Add(4 * time.Minute), noon.Add(30 * time.Minute),
		},
	} {
		w := newWorld(t)
		err := w.consumer().Handle(t.Context(), message(1, tt.sealed, noon, tt.more))
		if err != nil {
			t.Fatal(err)
		}
		if got := w.stored().Candidate.Pair.ExpiresAt; !got.Equal(tt.ends) {
			t.Errorf("%s: ends %v, want %v", name, got, tt.ends)
		}
	}
}

// from is a login as it arrives from a service with its own NATS account.
func from(sender string, m *runner.Message) *runner.Message {
	m.Subject = "from." + sender + "." + m.Subject
	return m
}

// The sender of a login is in its cause, also after it was put off, and the newest login of a user
// wins whichever sender it came from.
func TestALoginKeepsItsSender(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	err := c.PutOff(t.Context(), from("shop", message(1, noon, noon)), errKeyMissing)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil {
		t.Fatal(err)
	}
	if g := w.stored(); g.Candidate.Cause.Sender != "shop" || w.woken[0].Cause.Sender != "shop" {
		t.Errorf("stored %+v, woken %+v", g.Candidate.Cause, w.woken)
	}
	for _, m := range []*runner.Message{
		from("crm", message(3, noon, noon)), from("shop", message(2, noon, noon)),
	} {
		if err := c.Handle(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if g := w.prove(); g.Login.Sequence != 3 || g.Candidate != nil {
		t.Errorf("login %d is proven, and %+v waits", g.Login.Sequence, g.Candidate)
	}
}

// A login of a sender that may not is rejected, and stays out when it is put off before it was
// looked at. One that was put off was let in before, maybe by a version that knew of no senders.
func TestALoginOfASenderThatMayNotIsRejected(t *testing.T) {
	w := newWorld(t)
	w.refuse = func(e schema.Event) error {
		if e.Sender != "shop" || e.Type != schema.UserLogin || e.Provider != key.Provider {
			return &schema.Malformed{
				Reason:  schema.RejectSender,
				Field:   "sender",
				Message: "may not",
			}
		}
		return nil
	}
	c := w.consumer()
	for _, m := range []*runner.Message{
		message(1, noon, noon), from("crm", message(1, noon, noon)),
	} {
		if field := rejected(t, c.Handle(t.Context(), m)); field != "sender" {
			t.Errorf("%s: rejected for %s", m.Subject, field)
		}
		if err := c.PutOff(t.Context(), m, errKeyMissing); err == nil {
			t.Errorf("%s: put off", m.Subject)
		}
	}
	if len(w.woken)+len(w.deferred) != 0 {
		t.Errorf("woken %v, deferred %v", w.woken, w.deferred)
	}
	err := c.PutOff(t.Context(), from("shop", message(2, noon, noon)), errKeyMissing)
	if err != nil {
		t.Fatal(err)
	}
	w.deferred[0].of.Sender = ""
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil || len(w.woken) != 1 {
		t.Errorf("one that was put off before: %v, woken %v", err, w.woken)
	}
}

// A login that was published again may have its answer under the id of a version before: its work
// says that the answer is to be looked for.
func TestALoginPublishedAgainIsLookedFor(t *testing.T) {
	w := newWorld(t)
	c := w.consumer()
	for n, again := range []bool{false, true} {
		m := from([]string{"shop", "crm"}[n], message(1, noon, noon))
		m.Sequence = uint64(n + 1)
		if err := c.Handle(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		if len(w.woken) != n+1 || w.woken[n].Again != again {
			t.Errorf("login %d woke %+v", n, w.woken)
		}
	}
}

// A login beyond its sender's rate is rejected before anything of it is opened or stored. One that
// was put off was let in before.
func TestALoginBeyondTheRateIsRejected(t *testing.T) {
	w := newWorld(t)
	w.admit = func(context.Context, *runner.Message, schema.Event) error {
		return &schema.Malformed{
			Reason:  schema.RejectSenderRate,
			Field:   "sender",
			Message: "too many",
		}
	}
	c := w.consumer()
	field := rejected(t, c.Handle(t.Context(), from("shop", message(1, noon, noon))))
	if field != "sender" {
		t.Errorf("rejected for %s", field)
	}
	if _, err := w.store.Load(t.Context(), key); !errors.Is(err, grant.ErrNotFound) ||
		len(w.woken) != 0 {
		t.Errorf("stored: %v, woken %v", err, w.woken)
	}
	second := from("shop", message(2, noon, noon))
	if err := c.PutOff(t.Context(), second, errKeyMissing); err != nil {
		t.Fatal(err)
	}
	if err := c.HandleDeferred(t.Context(), w.again()); err != nil || len(w.woken) != 1 {
		t.Errorf("one that was put off before: %v, woken %v", err, w.woken)
	}
	away := errors.New("no leader")
	w.admit = func(context.Context, *runner.Message, schema.Event) error { return away }
	err := w.consumer().Handle(t.Context(), from("shop", message(3, noon, noon)))
	_, malformed := errors.AsType[*schema.Malformed](err)
	if malformed || !errors.Is(err, away) || len(w.woken) != 1 {
		t.Errorf("one of which nothing is known: %v, woken %v", err, w.woken)
	}
}
