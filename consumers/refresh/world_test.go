package refresh_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/metric/noop"
)

var (
	start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	key   = grant.Key{Provider: "propelauth", User: "u17"}
	// A margin of a fifth and no jitter: a token of 100 s is due after 80 s.
	policy = grant.Policy{
		ConfirmMin: 30 * time.Second,
		ConfirmMax: 30 * time.Second,
		Tries:      3,
	}.WithDefaults()
)

// world is everything outside a Consumer, in memory: a store, a stream and a strict provider, on
// one clock. Each effect passes at, before and after it happens, so that a test can put a rival, a
// fault, or the worker's death exactly there: an error before an effect keeps it from happening, an
// error after it loses the reply.
type world struct {
	t     testing.TB
	mu    sync.Mutex
	clock time.Time
	store grant.Store
	point func(effect string) error

	// The stream.
	timers    map[grant.Key]armed
	outcomes  []schema.Event
	published grant.Mark // the latest of them
	// loginWaits: a login was accepted and is not stored yet.
	loginWaits bool
	parkedFor  map[grant.Key]grant.Parcel

	publishes int    // also of what is there
	looks     int    // at what was published
	onLook    func() // called before each of them, if set
	forgetful bool   // the duplicate window is over: an id that is stored already is taken again

	// The provider: one-time refresh tokens, a reuse ends the family.
	families  map[string]*family // by any token of theirs
	issued    int
	grace     time.Duration
	inFlight  int
	mostAtAll int
	reuse     int
	replays   int // of a rotated token within its grace
	refreshed int
	refuse    error // answers every refresh
	noAccess  bool  // answers have a refresh token alone
	noDate    bool  // the provider does not say when it answered
	lose      int   // so many answers get lost after rotating
	profile   schema.Profile
	userinfo  error
	strangers map[string]error // what userinfo answers to an access token
	revoked   []string

	guard        refresh.Guard    // nil: none
	limiter      refresh.Limiter  // nil: none
	profileEvery time.Duration    // of the policy
	resting      grant.Policy     // Idle, Keepalive, SessionMax and Windows of the policy
	idTokens     refresh.IDTokens // nil: userinfo is asked
}

type armed struct {
	at   time.Time
	work grant.Work
}

type family struct {
	current, previous string
	rotatedAt         time.Time
	dead              bool
	name              string
}

func newWorld(t testing.TB) *world {
	w := &world{
		t:         t,
		clock:     start,
		timers:    map[grant.Key]armed{},
		parkedFor: map[grant.Key]grant.Parcel{},
		families:  map[string]*family{},
		point:     func(string) error { return nil },
		profile:   schema.Profile{ID: key.User, Email: "jane@example.com"},
	}
	w.store = storetest.NewMemory(w.now)
	return w
}

func (w *world) setAt(point func(effect string) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.point = point
}

// away has one effect fail until setAt says otherwise.
func (w *world) away(failing string) {
	w.setAt(func(effect string) error {
		if effect == failing {
			return errAway
		}
		return nil
	})
}

// crashParked delivers to a worker for which the store is away once a token was presented, and that
// dies when the pair is parked.
func (w *world) crashParked(ctx context.Context, work grant.Work, nth uint64) {
	ctx, kill := context.WithCancel(ctx)
	defer kill()
	presented := false
	w.setAt(func(effect string) error {
		switch effect {
		case "presented":
			presented = true
		case "save", "load":
			if presented {
				return errAway
			}
		case "parked":
			kill()
		}
		return nil
	})
	_ = w.deliver(ctx, work, nth)
	w.setAt(func(string) error { return nil })
	w.advance(11 * time.Second)
}

func (w *world) at(effect string) error {
	w.mu.Lock()
	point := w.point
	w.mu.Unlock()
	return point(effect)
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.clock
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// login stores a grant whose access token has left to go, as if the provider had named its user,
// and returns its first refresh token.
func (w *world) login(name string, left time.Duration) string {
	w.t.Helper()
	return w.arrive(name, left, func(next grant.Grant, t grant.Turn) grant.Grant {
		g := next.AsCandidate().Proven(t)
		g.Cause, g.Progress, g.Pending, g.Owed = schema.Cause{}, "", nil, nil
		return g
	})
}

// candidate stores an unproven login.
func (w *world) candidate(name string, left time.Duration) string {
	w.t.Helper()
	return w.arrive(name, left, func(next grant.Grant, _ grant.Turn) grant.Grant { return next })
}

// candidateMeanwhile has a login come when the profile is next asked for. token is empty until
// then.
func (w *world) candidateMeanwhile(name string, left time.Duration) (token *string) {
	token = new(string)
	w.setAt(func(effect string) error {
		if effect == "userinfo" && *token == "" {
			*token = w.candidate(name, left)
		}
		return nil
	})
	return token
}

// candidateWaits puts the turn of the candidate off, as a failure would.
func (w *world) candidateWaits(d time.Duration) (turn time.Time) {
	w.t.Helper()
	g := mustStored(w)
	c := *g.Candidate
	c.NextDueAt = w.now().Add(d)
	g.Candidate = &c
	w.save(g)
	return c.NextDueAt
}

// failUntilAnswered has the work of a login fail until it has an outcome, and then advances to its
// next turn, at which it works.
func (w *world) failUntilAnswered(token string) {
	w.t.Helper()
	w.strangers = map[string]error{
		"access-" + token: &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502},
	}
	w.settle(loginWork(token), 1)
	for n := 0; !mustStored(w).Candidate.Answered && n < 9; n++ {
		w.fire()
	}
	w.strangers = nil
	w.advance(mustStored(w).Candidate.NextDueAt.Sub(w.now()))
}

// loseRefreshToken makes the stored grant one of a login that brought none.
func (w *world) loseRefreshToken() {
	w.t.Helper()
	g := mustStored(w)
	g.Pair.Refresh = secret.Value{}
	w.save(g)
}

func loginCause(token string) schema.Cause {
	return schema.Cause{
		ID:     "login-" + token,
		Type:   schema.UserLogin,
		Source: "/test",
		Time:   start,
		Sender: "shop",
	}
}

func (w *world) arrive(
	name string, left time.Duration, then func(grant.Grant, grant.Turn) grant.Grant,
) string {
	w.t.Helper()
	w.mu.Lock()
	w.issued++
	token := fmt.Sprintf("%s-%d", name, w.issued)
	w.families[token] = &family{current: token, name: name}
	seq := uint64(w.issued)
	w.mu.Unlock()
	pair := grant.Pair{
		Access:    secret.New("access-" + token),
		Refresh:   secret.New(token),
		ExpiresAt: w.now().Add(left),
		Lifetime:  100 * time.Second,
		SentAt:    w.now(),
	}
	c := grant.Candidate{
		Pair:  pair,
		Cause: loginCause(token),
		Login: grant.Position{
			Stream:   start,
			Sequence: seq,
			Time:     w.now(),
			Token:    pair.Refresh.Fingerprint(),
		},
	}
	for {
		cur, err := w.store.Load(context.Background(), key)
		if err != nil && !errors.Is(err, grant.ErrNotFound) {
			w.t.Fatal(err)
		}
		turn := grant.Turn{Nonce: "login-" + token, Now: w.now(), Policy: &policy}
		next, what := grant.LoggedIn(cur, key, c, turn)
		if what != grant.Fresh {
			w.t.Fatalf("the test's own login is %s", what)
		}
		if _, err := w.store.Save(context.Background(), then(next, turn)); err == nil {
			return token
		} else if !errors.Is(err, grant.ErrConflict) {
			w.t.Fatal(err)
		}
	}
}

func (w *world) erase() {
	w.t.Helper()
	for {
		g, err := w.store.Load(context.Background(), key)
		if errors.Is(err, grant.ErrNotFound) {
			return
		}
		if err == nil {
			err = w.store.Delete(context.Background(), key, g.Revision)
		}
		if err != nil && !errors.Is(err, grant.ErrConflict) && !errors.Is(err, grant.ErrNotFound) {
			w.t.Fatal(err)
		}
	}
}

func (w *world) stored() (grant.Grant, bool) {
	w.t.Helper()
	g, err := w.store.Load(context.Background(), key)
	if err != nil && !errors.Is(err, grant.ErrNotFound) {
		w.t.Fatal(err)
	}
	return g, err == nil
}

func (w *world) consumer() *refresh.Consumer {
	w.t.Helper()
	policy := policy
	policy.ProfileEvery = w.profileEvery
	policy.Idle, policy.Keepalive = w.resting.Idle, w.resting.Keepalive
	policy.SessionMax, policy.Windows = w.resting.SessionMax, w.resting.Windows
	c, err := refresh.New(refresh.Config{
		Store:    storeAt{w},
		Timers:   streamAt{w},
		Outcomes: streamAt{w},
		Parking:  streamAt{w},
		Logins:   streamAt{w},
		Now:      w.now,
		Cipher:   plainCipher{},
		Providers: map[string]refresh.Provider{
			key.Provider: {
				Client:         providerAt{w},
				Policy:         policy,
				Guard:          w.guard,
				Limiter:        w.limiter,
				IDTokens:       w.idTokens,
				RevokeReplaced: true,
			},
		},
		Parse: func(string, schema.Header) (grant.Key, grant.Work, error) {
			return key, w.work(), nil
		},
		Rand:      func() float64 { return 0.5 },
		Logger:    slog.New(slog.DiscardHandler),
		Meter:     noop.Meter{},
		SaveLimit: time.Millisecond,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

var current sync.Map // world → the work of the delivery under way

func (w *world) work() grant.Work {
	v, _ := current.Load(w)
	return v.(grant.Work)
}

// deliver hands the work to a new worker, as the first, second, … delivery of its message.
func (w *world) deliver(ctx context.Context, work grant.Work, nth uint64) error {
	current.Store(w, work)
	return w.consumer().Handle(ctx, message(nth))
}

// settle delivers until the work is acknowledged, waiting out claims in between.
func (w *world) settle(work grant.Work, nth uint64) {
	w.t.Helper()
	for ; nth < 20; nth++ {
		if err := w.deliver(context.Background(), work, nth); err == nil {
			return
		}
		w.advance(11 * time.Second)
	}
	w.t.Fatal("the work is never done")
}

// fire delivers the armed timer when it is time.
func (w *world) fire() {
	w.t.Helper()
	a, ok := w.timers[key]
	if !ok {
		w.t.Fatal("no timer is armed")
	}
	delete(w.timers, key)
	if wait := a.at.Sub(w.now()); wait > 0 {
		w.advance(wait)
	}
	w.settle(a.work, 1)
}

func (w *world) outcome(id string) (schema.Event, bool) { return w.outcomeOf(work(id).Cause) }

func (w *world) outcomeOf(cause schema.Cause) (schema.Event, bool) {
	for _, e := range w.outcomes {
		var d struct{ Cause schema.Cause }
		if err := json.Unmarshal(e.Data, &d); err != nil {
			w.t.Fatal(err)
		}
		if grant.SameCause(d.Cause, cause) {
			return e, true
		}
	}
	return schema.Event{}, false
}

func work(id string) grant.Work {
	return grant.Work{
		Cause: schema.Cause{ID: id, Type: schema.UserRefreshDue, Source: "/test", Time: start},
	}
}

type plainCipher struct{}

func (plainCipher) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (plainCipher) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

// pass lets an effect happen between two points of the world.
func pass[T any](w *world, before, after string, effect func() (T, error)) (T, error) {
	var zero T
	if err := w.at(before); err != nil {
		return zero, err
	}
	v, err := effect()
	if lost := w.at(after); lost != nil {
		return zero, lost
	}
	return v, err
}

type storeAt struct{ w *world }

func (s storeAt) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	return pass(s.w, "load", "loaded", func() (grant.Grant, error) {
		return s.w.store.Load(ctx, k)
	})
}

func (s storeAt) Claim(
	ctx context.Context, k grant.Key, r grant.ClaimRequest,
) (g grant.Grant, prior *grant.Claim, err error) {
	g, err = pass(s.w, "claim", "claimed", func() (g grant.Grant, err error) {
		g, prior, err = s.w.store.Claim(ctx, k, r)
		return g, err
	})
	return g, prior, err
}

func (s storeAt) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	return pass(s.w, "save", "saved", func() (uint64, error) { return s.w.store.Save(ctx, g) })
}

func (s storeAt) Delete(ctx context.Context, k grant.Key, rev uint64) error {
	return s.w.store.Delete(ctx, k, rev)
}

func (s storeAt) List(
	ctx context.Context, cursor string, limit int,
) ([]grant.ListEntry, string, error) {
	return s.w.store.List(ctx, cursor, limit)
}

func (s storeAt) ListDue(
	ctx context.Context, cursor string, limit int,
) ([]grant.Due, string, error) {
	return s.w.store.ListDue(ctx, cursor, limit)
}

func (s storeAt) ListSealed(
	ctx context.Context, cursor string, limit int,
) ([]grant.Sealed, string, error) {
	return s.w.store.ListSealed(ctx, cursor, limit)
}

func (s storeAt) Reseal(ctx context.Context, k grant.Key, rev uint64) error {
	return s.w.store.Reseal(ctx, k, rev)
}

type streamAt struct{ w *world }

func (s streamAt) Now() time.Time { return s.w.now() }

// write does one thing to the stream.
func (s streamAt) write(before, after string, effect func()) error {
	_, err := pass(s.w, before, after, func() (struct{}, error) {
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		effect()
		return struct{}{}, nil
	})
	return err
}

func (s streamAt) Arm(_ context.Context, k grant.Key, at time.Time, work grant.Work) error {
	return s.write("arm", "armed", func() { s.w.timers[k] = armed{at, work} })
}

func (s streamAt) PublishMarked(_ context.Context, e schema.Event, m grant.Mark) error {
	return s.write("publish", "published", func() {
		s.w.publishes++
		// As the stream does within its duplicate window.
		again := func(o schema.Event) bool { return o.ID == e.ID }
		if s.w.forgetful || !slices.ContainsFunc(s.w.outcomes, again) {
			s.w.outcomes, s.w.published = append(s.w.outcomes, e), s.w.published.Newest(m)
		}
	})
}

func (s streamAt) Newest(_ context.Context, k grant.Key) (grant.Mark, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.looks++
	parcel := s.w.parkedFor[k]
	if parcel.Candidate {
		return s.w.published, nil
	}
	return s.w.published.Newest(grant.Mark{Version: parcel.Version, Token: "parked"}), nil
}

func (s streamAt) Published(context.Context, grant.Key) (grant.Mark, error) {
	if s.w.onLook != nil {
		s.w.onLook()
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.looks++
	return s.w.published, nil
}

func (s streamAt) Park(_ context.Context, k grant.Key, p grant.Parcel) (uint64, error) {
	return 1, s.write("park", "parked", func() { s.w.parkedFor[k] = p })
}

func (s streamAt) Unpark(_ context.Context, k grant.Key, _ uint64) error {
	return s.write("unpark", "unparked", func() { delete(s.w.parkedFor, k) })
}

// Answered sees the last outcome of each type, as the engine does.
func (s streamAt) Answered(_ context.Context, _ grant.Key, id string) (bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	last := map[schema.Type]schema.Event{}
	for _, e := range s.w.outcomes {
		last[e.Type] = e
	}
	return slices.ContainsFunc(slices.Collect(maps.Values(last)), func(e schema.Event) bool {
		return grant.IsOutcome(key, e, id)
	}), nil
}

func (s streamAt) AnsweredSince(
	_ context.Context, _ grant.Key, id string, since time.Time,
) (bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return slices.ContainsFunc(s.w.outcomes, func(e schema.Event) bool {
		return grant.IsOutcome(key, e, id) && !e.Time.Before(since)
	}), nil
}

func (s streamAt) LoginWaits(context.Context, grant.Key) (bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.w.loginWaits, nil
}

func (s streamAt) Parked(_ context.Context, k grant.Key) (grant.Parcel, bool, error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	b, ok := s.w.parkedFor[k]
	return b, ok, nil
}

type providerAt struct{ w *world }

func (p providerAt) Refresh(ctx context.Context, token secret.Value) (grant.Tokens, error) {
	if err := p.w.at("present"); err != nil {
		return grant.Tokens{}, &grant.Fault{Class: grant.Unsent, Op: "refresh", Err: err}
	}
	t, err := p.w.rotate(token.Reveal())
	lost := p.w.at("presented")
	if lost == nil {
		lost = ctx.Err() // a client stops reading when its context ends
	}
	p.w.mu.Lock()
	p.w.inFlight--
	p.w.mu.Unlock()
	if lost != nil {
		return grant.Tokens{}, &grant.Fault{Class: grant.Ambiguous, Op: "refresh", Err: lost}
	}
	return t, err
}

func (w *world) rotate(token string) (grant.Tokens, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inFlight++
	w.mostAtAll = max(w.mostAtAll, w.inFlight)
	if w.refuse != nil {
		return grant.Tokens{}, w.refuse
	}
	dead := &grant.Fault{
		Class:  grant.Permanent,
		Op:     "refresh",
		Status: 400,
		Code:   "invalid_grant",
		Reason: schema.ReasonRevoked,
	}
	f := w.families[token]
	switch {
	case f == nil || f.dead:
		return grant.Tokens{}, dead
	case token == f.current:
	case token == f.previous && w.clock.Sub(f.rotatedAt) < w.grace:
		w.replays++
	default:
		w.reuse++
		f.dead = true
		return grant.Tokens{}, dead
	}
	w.issued++
	w.refreshed++
	next := fmt.Sprintf("%s-%d", f.name, w.issued)
	f.previous, f.current, f.rotatedAt = token, next, w.clock
	w.families[next] = f
	if w.lose > 0 {
		w.lose--
		return grant.Tokens{}, &grant.Fault{
			Class: grant.Ambiguous,
			Op:    "refresh",
			Err:   errors.New("connection reset"),
		}
	}
	if w.noAccess {
		return grant.Tokens{Refresh: secret.New(next), SentAt: w.clock}, nil
	}
	tokens := grant.Tokens{
		Access:    secret.New("access-" + next),
		Refresh:   secret.New(next),
		ExpiresIn: 100 * time.Second,
	}
	if !w.noDate {
		tokens.SentAt = w.clock
	}
	return tokens, nil
}

func (p providerAt) UserInfo(
	_ context.Context, access secret.Value, _ string,
) (schema.Profile, error) {
	return pass(p.w, "userinfo", "synced", func() (schema.Profile, error) {
		return p.w.profile, cmp.Or(p.w.userinfo, p.w.strangers[access.Reveal()])
	})
}

func (p providerAt) Revoke(_ context.Context, token secret.Value) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	p.w.revoked = append(p.w.revoked, token.Reveal())
	return nil
}

// accepted reports whether the provider would take the stored refresh token now.
func (w *world) accepted(g grant.Grant) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.families[g.Pair.Refresh.Reveal()]
	return f != nil && !f.dead && f.current == g.Pair.Refresh.Reveal()
}

func message(nth uint64) *runner.Message {
	return &runner.Message{Subject: "renewal.due.propelauth.u17", Deliveries: nth}
}
