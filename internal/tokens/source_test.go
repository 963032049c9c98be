package tokens_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/schema"
)

const life = 30 * time.Minute

// world is a source on a store in memory, and a renewd that is told what to do when it is asked.
type world struct {
	*storetest.Memory
	t      *testing.T
	source *tokens.Source
	loads  atomic.Int64
	asks   atomic.Int64
	down   atomic.Pointer[error] // what a load fails with
	renew  func(ctx context.Context, k grant.Key, w grant.Work) error
	// loaded happens between the first load and its caller's look at the record.
	loaded func()
}

func newWorld(t *testing.T, c tokens.Config) *world {
	t.Helper()
	w := &world{t: t, Memory: storetest.NewMemory(time.Now)}
	w.renew = func(_ context.Context, k grant.Key, _ grant.Work) error { w.rotate(k); return nil }
	c.Store, c.Asker, c.Providers = w, w, []string{"p", "q"}
	var err error
	w.source, err = tokens.New(c)
	w.must(err)
	t.Cleanup(w.source.Close)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	n := w.loads.Add(1)
	if err := w.down.Load(); err != nil {
		return grant.Grant{}, *err
	}
	g, err := w.Memory.Load(ctx, k)
	if n == 1 && w.loaded != nil {
		w.loaded()
	}
	return g, err
}

func (w *world) Ask(ctx context.Context, k grant.Key, work grant.Work) error {
	w.asks.Add(1)
	return w.renew(ctx, k, work)
}

// has stores a user whose token is good for this long.
func (w *world) has(user string, left time.Duration) grant.Key {
	w.t.Helper()
	k := grant.Key{Provider: "p", User: user}
	w.save(grant.Grant{
		Key:     k,
		Status:  grant.Live,
		Version: 1,
		LoginAt: time.Now(),
		Pair: grant.Pair{
			Access:    secret.New("access-1"),
			Refresh:   secret.New("refresh-1"),
			Scope:     "email",
			Parent:    "parent",
			ExpiresAt: time.Now().Add(left),
			Lifetime:  life,
		},
	})
	return k
}

func (w *world) save(g grant.Grant) {
	w.t.Helper()
	_, err := w.Save(context.Background(), g)
	w.must(err)
}

// change is what another worker does to the record.
func (w *world) change(k grant.Key, f func(*grant.Grant)) {
	w.t.Helper()
	g, err := w.Memory.Load(context.Background(), k)
	w.must(err)
	g.Version++
	f(&g)
	w.save(g)
}

func (w *world) rotate(k grant.Key) {
	w.change(k, func(g *grant.Grant) {
		g.Status, g.Candidate = grant.Live, nil
		g.Pair.Access = secret.New(fmt.Sprintf("access-%d", g.Version))
		g.Pair.Refresh = secret.New(fmt.Sprintf("refresh-%d", g.Version))
		g.Pair.Parent, g.Pair.Lifetime, g.Pair.ExpiresAt = "parent", life, time.Now().Add(life)
	})
}

func (w *world) get(user string) (tokens.Token, error) { return w.getFor(w.t.Context(), user) }

func (w *world) getFor(ctx context.Context, user string) (tokens.Token, error) {
	return w.source.Get(ctx, tokens.Request{Provider: "p", User: user, Reader: "shop"})
}

// pass lets virtual time pass.
func pass(d time.Duration) { <-time.After(d) }

// unanswered is what an Asker does whose renewal gets no answer, as of a provider that is paused.
func unanswered(ctx context.Context, _ grant.Key, _ grant.Work) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (w *world) code(err error) string {
	w.t.Helper()
	no, ok := errors.AsType[*schema.NoToken](err)
	if !ok {
		w.t.Fatalf("%v is no NoToken", err)
	}
	return no.Code
}

func TestGoodTokenIsOneLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		w.has("u", 10*time.Minute)
		got, err := w.get("u")
		w.must(err)
		if got.Access.Reveal() != "access-1" || got.Type != "Bearer" || got.Scope != "email" ||
			got.Version != 1 || got.Short != "" || time.Until(got.ExpiresAt) != 10*time.Minute {
			t.Errorf("%+v", got)
		}
		if w.loads.Load() != 1 || w.asks.Load() != 0 {
			t.Errorf("%d loads, %d renewals", w.loads.Load(), w.asks.Load())
		}
	})
}

func TestTenThousandCallersShareOneRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		w.renew = func(_ context.Context, _ grant.Key, work grant.Work) error {
			c := work.Cause
			if c.Type != schema.UserRefreshDue || c.Sender != "shop" || c.ID == "" {
				t.Errorf("asked for by %+v", c)
			}
			if work.MinValid != schema.DefaultMinValid {
				t.Errorf("asked for %+v", work)
			}
			pass(700 * time.Millisecond)
			w.rotate(k)
			return nil
		}
		var all sync.WaitGroup
		for range 10_000 {
			all.Go(func() {
				got, err := w.get("u")
				if err != nil || got.Access.Reveal() != "access-2" || got.Short != "" {
					t.Errorf("%+v, %v", got, err)
				}
			})
		}
		all.Wait()
		if n := w.asks.Load(); n != 1 {
			t.Errorf("%d renewals", n)
		}
	})
}

// A caller reads the record, and a renewal ends before the caller has joined those who wait for it.
func TestAnOldReadOfTheRecordAsksForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		w.loaded = func() { w.rotate(k) }
		got, err := w.get("u")
		if err != nil || got.Access.Reveal() != "access-2" || w.asks.Load() != 0 {
			t.Errorf("%+v, %v, %d renewals", got, err, w.asks.Load())
		}
	})
}

// Callers who come while the record is read share the next load: the record that each gets was read
// after it came.
func TestACrowdIsTwoLoads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", time.Hour)
		release := make(chan struct{})
		w.loaded = func() { <-release }
		var all sync.WaitGroup
		all.Go(func() {
			if got, err := w.get("u"); err != nil || got.Version != 1 {
				t.Errorf("the first: %+v, %v", got, err)
			}
		})
		synctest.Wait()
		w.rotate(k)
		for range 1000 {
			all.Go(func() {
				if got, err := w.get("u"); err != nil || got.Version != 2 {
					t.Errorf("one of the crowd: %+v, %v", got, err)
				}
			})
		}
		ctx, hangUp := context.WithCancel(t.Context())
		all.Go(func() {
			if _, err := w.getFor(ctx, "u"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		hangUp()
		synctest.Wait()
		close(release)
		all.Wait()
		if n := w.loads.Load(); n != 2 {
			t.Errorf("%d loads", n)
		}
	})
}

func TestHangingUpEndsTheCallersWaitAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		w.renew = func(ctx context.Context, _ grant.Key, _ grant.Work) error {
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
				t.Error("the renewal was given up")
			}
			w.rotate(k)
			return nil
		}
		gone := errors.New("hung up")
		ctx, hangUp := context.WithCancelCause(t.Context())
		var first, second sync.WaitGroup
		first.Go(func() {
			if _, err := w.getFor(ctx, "u"); !errors.Is(err, gone) {
				t.Errorf("the first caller: %v", err)
			}
		})
		synctest.Wait()
		second.Go(func() {
			if got, err := w.get("u"); err != nil || got.Access.Reveal() != "access-2" {
				t.Errorf("the second caller: %+v, %v", got, err)
			}
		})
		synctest.Wait()
		hangUp(gone)
		began := time.Now()
		first.Wait()
		if time.Since(began) != 0 {
			t.Error("the first caller waited on")
		}
		second.Wait()
		if n := w.asks.Load(); n != 1 {
			t.Errorf("%d renewals", n)
		}
	})
}

// The first caller of an expired user goes away before anything came, and no other caller asks: the
// renewal goes on, and leaves nothing behind.
func TestHangingUpOfTheOnlyCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{MaxCallers: 1, MaxUsers: 1})
		k := w.has("u", -time.Minute)
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			pass(2 * time.Second)
			w.rotate(k)
			return nil
		}
		ctx, hangUp := context.WithCancel(t.Context())
		hangUp()
		if _, err := w.getFor(ctx, "u"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		ctx, hangUp = context.WithTimeout(t.Context(), time.Millisecond)
		defer hangUp()
		if _, err := w.getFor(ctx, "u"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		got, err := w.get("u") // takes the free place in the same wait
		if err != nil || got.Access.Reveal() != "access-2" || w.asks.Load() != 1 {
			t.Errorf("%+v, %v, %d renewals", got, err, w.asks.Load())
		}
	})
}

func TestProviderDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", 30*time.Second)
		w.renew = unanswered
		began := time.Now()
		got, err := w.get("u")
		if err != nil || got.Access.Reveal() != "access-1" || got.Short != schema.ShortDelayed {
			t.Errorf("while it lives: %+v, %v", got, err)
		}
		if waited := time.Since(began); waited != 15*time.Second {
			t.Errorf("waited %v", waited)
		}
		got, err = w.get("u")
		if err != nil || got.Short != schema.ShortDelayed || w.asks.Load() != 1 {
			t.Errorf("a moment later: %+v, %v, %d renewals", got, err, w.asks.Load())
		}
		pass(20 * time.Second) // the token ends
		_, err = w.get("u")
		if w.code(err) != schema.TokenTryAgain || w.asks.Load() != 2 {
			t.Errorf("ended: %v, %d renewals", err, w.asks.Load())
		}
		_, err = w.get("u")
		no, _ := errors.AsType[*schema.NoToken](err)
		if no == nil || no.Code != schema.TokenTryAgain || no.RetryAfter() != 5*time.Second {
			t.Errorf("a moment later: %+v", no)
		}
		if w.asks.Load() != 2 {
			t.Errorf("a moment later: %d renewals", w.asks.Load())
		}
		w.rotate(k) // it is back, and another worker was faster
		if got, err = w.get("u"); err != nil || got.Short != "" || w.asks.Load() != 2 {
			t.Errorf("back: %+v, %v", got, err)
		}
	})
}

// A try that fails has no outcome before the last one. The record tells, and the callers need not
// wait until their patience ends.
func TestFailedTryEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		w.renew = func(ctx context.Context, _ grant.Key, work grant.Work) error {
			w.change(k, func(g *grant.Grant) {
				g.Outages, g.LastError = 1, schema.ReasonProviderUnavailable
				g.FailedAt, g.NextDueAt = time.Now(), time.Now().Add(8*time.Second)
			})
			return unanswered(ctx, k, work)
		}
		began := time.Now()
		_, err := w.get("u")
		no, _ := errors.AsType[*schema.NoToken](err)
		if no == nil || no.Code != schema.TokenTryAgain || no.RetryAfterSeconds != 7 ||
			no.Reason != schema.ReasonProviderUnavailable {
			t.Errorf("%+v", err)
		}
		if waited := time.Since(began); waited > 2*time.Second {
			t.Errorf("waited %v", waited)
		}
	})
}

func TestAnsweredInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			w.change(k, func(g *grant.Grant) {
				g.Status, g.Verdict = grant.ReauthRequired, &grant.Verdict{
					Reason: schema.ReasonRevoked,
				}
				g.Pair, g.FailedAt = grant.Pair{}, time.Now()
			})
			return nil
		}
		_, err := w.get("u")
		no, _ := errors.AsType[*schema.NoToken](err)
		if no == nil || !no.SignInAgain() || no.Reason != schema.ReasonRevoked ||
			no.RetryAfter() != 0 || !no.Since.Equal(time.Now()) || !no.LoginAt.Equal(time.Now()) {
			t.Errorf("%+v", no)
		}
		if !strings.Contains(err.Error(), "token of p/u: sign_in_again (revoked)") {
			t.Error(err)
		}
	})
}

// A user signs in and a service wants the token at once: the login is not confirmed yet.
func TestCandidateIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := grant.Key{Provider: "p", User: "u"}
		pair := grant.Pair{
			Access: secret.New("of any publisher"), ExpiresAt: time.Now().Add(life), Lifetime: life,
		}
		w.save(grant.Grant{
			Key: k, Status: grant.Unproven, Version: 1, Candidate: &grant.Candidate{Pair: pair},
		})
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			pass(2 * time.Second)
			w.rotate(k)
			return nil
		}
		if got, err := w.get("u"); err != nil || got.Access.Reveal() != "access-2" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestRefusedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		w.has("u", life)
		for want, r := range map[string]tokens.Request{
			schema.TokenUnknownUser:     {Provider: "p", User: "nobody"},
			schema.TokenUnknownProvider: {Provider: "r", User: "u"},
			schema.TokenMalformed:       {Provider: "p", User: "a\x00b"},
		} {
			if _, err := w.source.Get(t.Context(), r); w.code(err) != want {
				t.Errorf("%+v: %v", r, err)
			}
		}
		if w.asks.Load() != 0 || w.loads.Load() != 1 {
			t.Errorf("%d renewals, %d loads", w.asks.Load(), w.loads.Load())
		}
	})
}

func TestStoreDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		w.has("u", life)
		cause := errors.New("connection refused")
		w.down.Store(&cause)
		_, err := w.get("u")
		if w.code(err) != schema.TokenStoreDown || !errors.Is(err, cause) {
			t.Error(err)
		}
		if no, _ := errors.AsType[*schema.NoToken](err); strings.Contains(no.Error(), "refused") {
			t.Errorf("the caller is told %q", no)
		}
		unreadable := fmt.Errorf("no key: %w", grant.ErrUnreadable)
		w.down.Store(&unreadable)
		if _, err = w.get("u"); w.code(err) != schema.TokenStoreDown {
			t.Error(err)
		}
	})
}

// One look that fails while a renewal is waited for is not the end of the wait; the last one is.
func TestStoreDownDuringAWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		k := w.has("u", -time.Minute)
		cause := errors.New("connection refused")
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			w.down.Store(&cause)
			pass(2500 * time.Millisecond)
			w.down.Store(nil)
			w.rotate(k)
			return nil
		}
		if got, err := w.get("u"); err != nil || got.Access.Reveal() != "access-2" {
			t.Errorf("%+v, %v", got, err)
		}
		w.change(k, func(g *grant.Grant) { g.Pair.ExpiresAt = time.Now() })
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			w.down.Store(&cause)
			return nil
		}
		if _, err := w.get("u"); w.code(err) != schema.TokenStoreDown {
			t.Error(err)
		}
	})
}

func TestNATSDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		w.renew = func(context.Context, grant.Key, grant.Work) error {
			return errors.New("no servers available")
		}
		w.has("good", 10*time.Minute)
		w.has("short", 30*time.Second)
		w.has("ended", -time.Second)
		if got, err := w.get("good"); err != nil || got.Short != "" {
			t.Errorf("good: %+v, %v", got, err)
		}
		if got, err := w.get("short"); err != nil || got.Short != schema.ShortDelayed {
			t.Errorf("short: %+v, %v", got, err)
		}
		if _, err := w.get("ended"); w.code(err) != schema.TokenTryAgain {
			t.Errorf("ended: %v", err)
		}
	})
}

func TestWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{MaxUsers: 3, MaxCallers: 2})
		w.renew = unanswered
		var waits sync.WaitGroup
		codes := make(chan string, 100)
		call := func(provider, user string) {
			waits.Go(func() {
				_, err := w.source.Get(t.Context(), tokens.Request{Provider: provider, User: user})
				no, ok := errors.AsType[*schema.NoToken](err)
				if ok && no.Code == schema.TokenBusy {
					codes <- provider + "/" + user
				}
			})
			synctest.Wait()
		}
		busy := func(what string, want ...string) {
			t.Helper()
			var got []string
			for len(codes) > 0 {
				got = append(got, <-codes)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: busy %v, want %v", what, got, want)
			}
		}
		for _, user := range []string{"a", "b", "c", "d"} {
			w.has(user, -time.Minute)
		}
		g, err := w.Memory.Load(t.Context(), grant.Key{Provider: "p", User: "a"})
		w.must(err)
		g.Provider, g.Revision = "q", 0
		w.save(g)

		for range 4 {
			call("p", "a")
		}
		busy("one user's callers", "p/a", "p/a")
		call("p", "b")
		call("p", "c")
		busy("other users' first callers")
		call("p", "d")
		busy("one user too many", "p/d")
		call("q", "a")
		busy("another provider")
		w.has("lives", 30*time.Second)
		if got, err := w.get("lives"); err != nil || got.Short != schema.ShortDelayed {
			t.Errorf("too many wait, and the token lives: %+v, %v", got, err)
		}
		waits.Wait() // until the waits' end
		pass(time.Minute)
		w.renew = func(_ context.Context, k grant.Key, _ grant.Work) error {
			w.rotate(k)
			return nil
		}
		for _, user := range []string{"a", "b", "c", "d"} {
			if _, err := w.get(user); err != nil {
				t.Errorf("later, %s: %v", user, err)
			}
		}
	})
}

func TestClosedSourceStillReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, tokens.Config{})
		w.renew = unanswered
		w.has("good", life)
		w.has("ended", -time.Second)
		var waits sync.WaitGroup
		waits.Go(func() {
			if _, err := w.get("ended"); w.code(err) != schema.TokenTryAgain {
				t.Error(err)
			}
		})
		synctest.Wait()
		w.source.Close()
		waits.Wait()
		if _, err := w.get("ended"); err == nil {
			t.Error("a token of a user who has none")
		}
		if _, err := w.get("good"); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenPrintsNoToken(t *testing.T) {
	token := tokens.Token{Access: secret.New("canary")}
	if text := fmt.Sprintf("%v %+v %#v", token, token, token); strings.Contains(text, "canary") {
		t.Error(text)
	}
}

// A good token from a store that costs nothing: what the package itself costs.
func BenchmarkGood(b *testing.B) {
	m := storetest.NewMemory(time.Now)
	for i := range 1000 {
		_, err := m.Save(b.Context(), grant.Grant{
			Key: grant.Key{Provider: "p", User: fmt.Sprint(i)}, Status: grant.Live, Version: 1,
			Pair: grant.Pair{Access: secret.New("a"), ExpiresAt: time.Now().Add(time.Hour)},
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	s, err := tokens.New(tokens.Config{Store: m, Asker: tokens.NATS{}, Providers: []string{"p"}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	users := make([]string, 1000)
	for i := range users {
		users[i] = fmt.Sprint(i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			r := tokens.Request{Provider: "p", User: users[i%1000], Reader: "shop"}
			if _, err := s.Get(b.Context(), r); err != nil {
				b.Error(err)
			}
		}
	})
}
