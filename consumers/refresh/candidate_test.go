package refresh_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/schema"
)

func loginWork(token string) grant.Work { return grant.Work{Cause: loginCause(token)} }

// told counts the outcomes of each type.
func (w *world) told() map[schema.Type]int {
	n := map[schema.Type]int{}
	for _, e := range w.outcomes {
		n[e.Type]++
	}
	return n
}

// prove lets the candidate's work be done, its retries too, until it is the grant or is gone.
func (w *world) prove(token string) grant.Grant {
	w.t.Helper()
	w.settle(loginWork(token), 1)
	for n := 0; mustStored(w).Candidate != nil; n++ {
		if n == 20 {
			w.t.Fatal("the candidate is neither proven nor rejected")
		}
		w.fire()
	}
	return mustStored(w)
}

func TestALoginIsProvenByUserinfo(t *testing.T) {
	w := newWorld(t)
	token := w.candidate("a", 90*time.Second)
	g := w.prove(token)
	if g.Status != grant.Live || g.Pair.Refresh.Reveal() != token || w.refreshed != 0 {
		t.Errorf("%s with %s after %d presentations",
			g.Status, g.Pair.Refresh.Reveal(), w.refreshed)
	}
	e, ok := w.outcomeOf(loginCause(token))
	if !ok || e.Type != schema.UserSynced || len(w.outcomes) != 1 {
		t.Errorf("told %v", w.outcomes)
	}
}

// A login whose access token has run out on its way is proven by what its refresh token brings.
func TestALoginThatComesLateIsProvenByItsRefreshToken(t *testing.T) {
	w := newWorld(t)
	w.login("a", 50*time.Second)
	g := w.prove(w.candidate("b", -time.Second))
	if g.Pair.Refresh.Reveal()[0] != 'b' || !w.accepted(g) || w.reuse != 0 {
		t.Errorf("stored %s", g.Pair.Refresh.Reveal())
	}
	if len(w.revoked) != 1 || w.revoked[0] != "a-1" {
		t.Errorf("revoked %v of the session that was replaced", w.revoked)
	}
}

// Any publisher can seal anything for any user. That costs a call or two, and never the proven
// session.
func TestALoginThatIsNotProvenCostsNoSession(t *testing.T) {
	for name, tt := range map[string]struct {
		left  time.Duration
		spoil func(w *world, token string)
	}{
		"tokens that nobody issued": {90 * time.Second, func(w *world, token string) {
			delete(w.families, token)
			w.strangers["access-"+token] = grant.ErrAccessRefused
		}},
		"tokens of somebody else": {
			90 * time.Second,
			func(w *world, token string) {
				w.strangers["access-"+token] = grant.ErrSubjectMismatch
			},
		},
		"a spent token of somebody's, late": {
			-time.Second, func(w *world, token string) { w.families[token].dead = true },
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.strangers = map[string]error{}
			counts := &quietGuard{w: w}
			w.guard = counts
			w.login("a", 50*time.Second)
			token := w.candidate("x", tt.left)
			tt.spoil(w, token)
			g := w.prove(token)
			if g.Status != grant.Live || g.Pair.Refresh.Reveal()[0] != 'a' || !w.accepted(g) ||
				g.Verdict != nil {
				t.Errorf("the proven session became %s, %v", g.Status, g.Verdict)
			}
			if w.told()[schema.MessageRejected] != 1 || w.told()[schema.UserReauthRequired] != 0 {
				t.Errorf("told %v", w.told())
			}
			d := data[schema.Rejected](t, w.last(schema.MessageRejected))
			if d.Cause != loginCause(token) || d.Reason != schema.RejectUnproven {
				t.Errorf("rejected as %+v", d)
			} else if !strings.HasPrefix(d.Subject, "from.shop.user.login.") {
				t.Errorf("rejected on %s, which is not where it came in", d.Subject)
			}
			for _, f := range counts.faults {
				if f != nil && f.Class == grant.Permanent {
					t.Error("the refusal of a login counts against the provider's users")
				}
			}
			if a, ok := w.timers[key]; !ok || a.at.After(g.Pair.ExpiresAt) {
				t.Errorf("the proven tokens are renewed at %v", a.at)
			}
			w.fire()
			if g := mustStored(w); !w.accepted(g) || g.Pair.Refresh.Reveal()[0] != 'a' ||
				w.reuse != 0 {
				t.Error("the proven session is not renewed any more")
			}
		})
	}
}

// A login of a user of whom nothing is known, and nothing of it holds.
func TestALoginThatIsNotProvenMakesNoGrant(t *testing.T) {
	w := newWorld(t)
	token := w.candidate("x", 90*time.Second)
	w.strangers = map[string]error{"access-" + token: grant.ErrSubjectMismatch}
	w.settle(loginWork(token), 1)
	if g := mustStored(w); g.Status != grant.Forgotten || !g.Pair.Access.IsZero() {
		t.Errorf("stored %s", g.Status)
	}
	w.settle(work("r1"), 1)
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonUnknownGrant {
		t.Errorf("a request is answered %+v", d)
	}
	if _, armed := w.timers[key]; armed {
		t.Error("a timer is set for nobody")
	}
}

// Even when unproven logins keep coming, the proven tokens are renewed in time.
func TestLoginsWithoutEndDoNotStarveTheProvenPair(t *testing.T) {
	w := newWorld(t)
	w.strangers = map[string]error{}
	w.login("a", 50*time.Second)
	for range 40 {
		token := w.candidate("x", 90*time.Second)
		delete(w.families, token)
		w.strangers["access-"+token] = grant.ErrAccessRefused
		delete(w.timers, key) // a wake takes the timer away
		w.settle(loginWork(token), 1)
		if a, ok := w.timers[key]; ok && a.at.Sub(w.now()) < 10*time.Second {
			w.fire()
		} else {
			w.advance(10 * time.Second)
		}
		if g := mustStored(w); !g.Pair.ExpiresAt.After(w.now()) {
			t.Fatalf("the proven access token ran out %v ago", w.now().Sub(g.Pair.ExpiresAt))
		}
	}
	g := mustStored(w)
	if !w.accepted(g) || w.reuse != 0 || w.told()[schema.UserReauthRequired] != 0 {
		t.Errorf("told %v", w.told())
	}
}

// A provider that is out of order rejects no login.
func TestALoginWaitsForAProviderThatIsOut(t *testing.T) {
	w := newWorld(t)
	w.userinfo = &grant.Fault{Class: grant.Ambiguous, Op: "userinfo", Status: 502}
	token := w.candidate("a", 90*time.Second)
	w.settle(loginWork(token), 1)
	for range 6 {
		w.fire()
	}
	if mustStored(w).Candidate == nil || w.told()[schema.MessageRejected] != 0 {
		t.Fatalf("told %v", w.told())
	}
	w.userinfo = nil
	for n := 0; mustStored(w).Candidate != nil && n < 9; n++ {
		w.fire()
	}
	g := mustStored(w)
	if g.Status != grant.Live || !w.accepted(g) || w.told()[schema.UserSynced] == 0 {
		t.Errorf("%s, told %v", g.Status, w.told())
	}
}

// A request in the middle of a login is answered, and so is the login.
func TestARequestMeetsACandidate(t *testing.T) {
	w := newWorld(t)
	w.strangers = map[string]error{}
	w.login("a", 50*time.Second)
	token := w.candidate("x", 90*time.Second)
	w.strangers["access-"+token] = grant.ErrSubjectMismatch
	w.settle(work("r1"), 1)
	if _, ok := w.outcome("r1"); !ok || w.told()[schema.MessageRejected] != 1 {
		t.Errorf("told %v", w.told())
	}
}

// A worker that proves a login dies at each point of it, and the next one goes on.
func TestKilledAtEachStepOfALogin(t *testing.T) {
	for _, left := range []time.Duration{90 * time.Second, -time.Second} {
		for n := range 16 {
			t.Run(fmt.Sprintf("left=%v/%02d", left, n), func(t *testing.T) {
				w := newWorld(t)
				w.grace = 30 * time.Second
				w.login("a", 50*time.Second)
				token := w.candidate("b", left)
				ctx, kill := context.WithCancel(t.Context())
				count := 0
				w.setAt(func(string) error {
					if count++; count > n {
						kill()
						return context.Canceled
					}
					return nil
				})
				_ = w.deliver(ctx, loginWork(token), 1)
				w.setAt(func(string) error { return nil })
				w.advance(11 * time.Second)
				w.settle(loginWork(token), 2)
				g := mustStored(w)
				if g.Pair.Refresh.Reveal()[0] != 'b' || !w.accepted(g) || w.reuse != 0 ||
					w.mostAtAll > 1 {
					t.Errorf("stored %s, %d reuses, %d in flight",
						g.Pair.Refresh.Reveal(), w.reuse, w.mostAtAll)
				}
				if _, ok := w.outcomeOf(loginCause(token)); !ok || len(w.outcomes) != 1 {
					t.Errorf("told %v", w.told())
				}
			})
		}
	}
}

// An answer to the proven pair that comes after a login was stored, and before it is proven, is
// saved beside it.
func TestAnAnswerInFlightIsSavedBesideACandidate(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	var token string
	once := false
	w.setAt(func(effect string) error {
		if effect == "presented" && !once {
			once = true
			token = w.candidate("x", 90*time.Second)
		}
		return nil
	})
	w.settle(work("r1"), 1)
	g := mustStored(w)
	if !w.accepted(g) || g.Pair.Refresh.Reveal()[0] != 'a' || g.Candidate == nil {
		t.Fatalf("stored %s", g.Pair.Refresh.Reveal())
	}
	w.strangers = map[string]error{"access-" + token: grant.ErrSubjectMismatch}
	if g = w.prove(token); !w.accepted(g) || g.Pair.Refresh.Reveal()[0] != 'a' {
		t.Error("the answer in flight is lost with the candidate")
	}
}

// A candidate's pair that was parked when its worker died comes back to the candidate, whatever
// work finds it.
func TestAParkedPairOfACandidateComesBackToIt(t *testing.T) {
	for name, next := range map[string]grant.Work{
		"the login's": {},
		"a request":   work("r1"),
		"a timer":     {Cause: schema.Cause{ID: "t", Type: schema.CauseTimer}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.login("a", 50*time.Second)
			token := w.candidate("b", -time.Second)
			ctx, kill := context.WithCancel(t.Context())
			w.setAt(func(effect string) error {
				switch effect {
				case "save":
					return errAway // the store takes nothing
				case "parked":
					kill()
					w.setAt(func(string) error { return context.Canceled })
				}
				return nil
			})
			_ = w.deliver(ctx, loginWork(token), 1)
			w.setAt(func(string) error { return nil })
			if w.parkedFor[key].Version == 0 {
				t.Fatal("nothing was parked")
			}
			w.advance(11 * time.Second)
			if next.Cause.ID == "" {
				next = loginWork(token)
			}
			w.settle(next, 1)
			for n := 0; mustStored(w).Candidate != nil && n < 5; n++ {
				w.fire()
			}
			g := mustStored(w)
			if g.Pair.Refresh.Reveal()[0] != 'b' || !w.accepted(g) || w.reuse != 0 ||
				w.replays != 0 {
				t.Errorf("stored %s, %d reuses, told %v",
					g.Pair.Refresh.Reveal(), w.reuse, w.told())
			}
		})
	}
}

// Without a refresh token a user stays signed in until the access token ends, whatever is asked
// for, and whatever one 401 says.
func TestWithoutARefreshTokenNobodyIsSignedOutEarly(t *testing.T) {
	w := newWorld(t)
	w.login("a", 5*time.Minute)
	w.loseRefreshToken()
	tokens := work("r1")
	tokens.Want = schema.WantTokens
	w.settle(tokens, 1)
	d := data[schema.RefreshFailed](t, w.last(schema.UserRefreshFailed))
	if d.Reason != schema.ReasonNoRefreshToken {
		t.Errorf("asked for tokens: %+v", d)
	}
	w.userinfo = grant.ErrAccessRefused
	w.settle(work("r2"), 1)
	if g := mustStored(w); g.Status != grant.Live || w.told()[schema.UserReauthRequired] != 0 {
		t.Fatalf("one 401: %s, told %v", g.Status, w.told())
	}
	w.userinfo = nil
	w.fire()
	if g := mustStored(w); g.Status != grant.Live || g.Verdict != nil {
		t.Errorf("a 401 that passed: %s, %v", g.Status, g.Verdict)
	}
	w.userinfo = grant.ErrAccessRefused
	w.settle(work("r3"), 1)
	for range 4 {
		w.fire()
	}
	if g := mustStored(w); g.Status != grant.Live || w.told()[schema.UserReauthRequired] != 0 {
		t.Fatalf("userinfo names no user at all, and still: %s, told %v", g.Status, w.told())
	}
	c := w.consumer()
	for n := 0; mustStored(w).Status == grant.Live && n < 9; n++ {
		w.witness(c) // another user is named in between
		a := w.timers[key]
		w.advance(a.at.Sub(w.now()))
		current.Store(w, a.work)
		if err := c.Handle(context.Background(), message(1)); err != nil {
			t.Fatal(err)
		}
	}
	if d := data[schema.ReauthRequired](t, w.last(
		schema.UserReauthRequired,
	)); d.Reason != schema.ReasonNoRefreshToken {
		t.Errorf("refused again and again, while others are named: %+v", d)
	}
}

// witness has userinfo name another user to this worker, now.
func (w *world) witness(c *refresh.Consumer) {
	w.t.Helper()
	w.advance(time.Millisecond)
	other := grant.Key{Provider: key.Provider, User: "witness"}
	pair := grant.Pair{Access: secret.New("a"), ExpiresAt: w.now().Add(time.Hour)}
	turn := grant.Turn{Nonce: "n", Now: w.now(), Policy: &policy}
	if _, err := w.store.Load(context.Background(), other); errors.Is(err, grant.ErrNotFound) {
		w.save(storetest.SignedIn(other, pair, grant.Position{Stream: start, Sequence: 1}, turn))
	}
	refused, mine, published := w.userinfo, key, w.published
	w.userinfo, key = nil, other
	defer func() { w.userinfo, key, w.published = refused, mine, published }()
	current.Store(w, work(fmt.Sprint("witness", w.now().UnixNano())))
	if err := c.Handle(context.Background(), message(1)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) save(g grant.Grant) {
	w.t.Helper()
	if _, err := w.store.Save(context.Background(), g); err != nil {
		w.t.Fatal(err)
	}
}

// A refresh token that came without an access token is saved, and presented soon.
func TestARefreshTokenWithoutAccessTokenIsSaved(t *testing.T) {
	w := newWorld(t)
	w.login("a", 10*time.Second)
	w.noAccess = true
	w.settle(work("r1"), 1)
	if g := mustStored(w); !w.accepted(g) || w.reuse != 0 {
		t.Fatalf("stored %s", g.Pair.Refresh.Reveal())
	}
	w.noAccess = false
	w.fire()
	g := mustStored(w)
	if !w.accepted(g) || g.Pair.Access.IsZero() || w.told()[schema.UserSynced] != 1 {
		t.Errorf("told %v", w.told())
	}
}

var errAway = errors.New("nobody answers")

// refuseEach has userinfo refuse each access token of the user, and name another user meanwhile,
// until the login of the token is rejected. All the work is done for the command.
func (w *world) refuseEach(token string, command grant.Work) {
	w.t.Helper()
	w.userinfo = grant.ErrAccessRefused
	c := w.consumer()
	for n := 0; mustStored(w).Candidate != nil; n++ {
		if n == 20 {
			w.t.Fatal("the login is not rejected")
		}
		w.witness(c)
		current.Store(w, command)
		if err := c.Handle(context.Background(), message(1)); err != nil {
			w.t.Fatal(err)
		}
		if a, ok := w.timers[key]; ok {
			delete(w.timers, key)
			command = a.work
			w.advance(a.at.Sub(w.now()))
		}
	}
	w.userinfo = nil
	if e, ok := w.outcomeOf(loginCause(token)); !ok || e.Type != schema.MessageRejected {
		w.t.Errorf("the login is told %v", w.told())
	}
}

// A request whose work ends in the rejection of a login is answered for the session of before: by
// its end, or by its renewal.
func TestARequestThatRejectsALoginIsAnswered(t *testing.T) {
	for name, tt := range map[string]struct {
		proven func(w *world)
		want   schema.Type
	}{
		"an ended session": {func(w *world) {
			w.login("a", 90*time.Second)
			g := mustStored(w)
			g.Status = grant.ReauthRequired
			w.save(g)
		}, schema.UserRefreshFailed},
		"a session that lives": {
			func(w *world) { w.login("a", 900*time.Second) }, schema.UserSynced,
		},
		"no session": {func(*world) {}, schema.UserRefreshFailed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tt.proven(w)
			before, _ := w.stored()
			asked := work("r1")
			asked.Want = schema.WantTokens
			w.refuseEach(w.candidate("b", 90*time.Second), asked)
			for range 5 {
				if _, ok := w.outcome("r1"); ok || len(w.timers) == 0 {
					break
				}
				w.fire()
			}
			e, ok := w.outcome("r1")
			if !ok || e.Type != tt.want {
				t.Fatalf("the request is told %q: %s", e.Type, e.Data)
			}
			if tt.want != schema.UserSynced {
				return
			}
			if now := mustStored(w).Pair.Refresh; !data[schema.Synced](t, e).Refreshed ||
				now.Equal(before.Pair.Refresh) {
				t.Error("the request for tokens brought none")
			}
		})
	}
}

// A worker that dies on a request, once it has rotated the pair of a login, leaves the login's
// proof to the next delivery. The request is not taken for the rotation of the session of before.
func TestARequestGoesOnWithTheLoginItRotated(t *testing.T) {
	w := newWorld(t)
	w.login("a", 900*time.Second)
	token := w.candidate("b", -time.Second)
	asked := work("r1")
	asked.Want = schema.WantTokens
	dead := false
	w.setAt(func(effect string) error {
		if dead = dead || effect == "userinfo"; dead {
			return errAway
		}
		return nil
	})
	_ = w.deliver(context.Background(), asked, 1)
	w.setAt(func(string) error { return nil })
	w.timers = map[grant.Key]armed{}
	w.advance(11 * time.Second)
	w.settle(asked, 2)
	for _, cause := range []schema.Cause{loginCause(token), asked.Cause} {
		e, ok := w.outcomeOf(cause)
		if !ok || !data[schema.Synced](t, e).Refreshed {
			t.Errorf("%s is told %s: %s", cause.ID, e.Type, e.Data)
		}
	}
	if g := mustStored(w); g.Candidate != nil || !w.accepted(g) || w.reuse != 0 {
		t.Errorf("the login is not proven; %d tokens shown twice", w.reuse)
	}
}
