package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// reader is a client that may read access tokens over HTTP, of a worker that knows it already.
func (w *world) reader(
	r daemon.Running,
) func(ctx context.Context, user string) (schema.AccessToken, string) {
	w.t.Helper()
	kv, err := w.js.KeyValue(w.t.Context(), topology.BucketClients)
	w.must(err)
	c, secret, err := clients.New("app", []clients.Right{clients.Token}, nil, time.Now())
	w.must(err)
	w.must(clients.Add(w.t.Context(), kv, c))
	get := func(ctx context.Context, user string) (got schema.AccessToken, code string) {
		url := fmt.Sprintf("http://%s/v1/users/%s/%s/token", r.HTTPAddr, provider, user)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		w.must(err)
		req.Header.Set("Authorization", "Bearer "+secret)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return got, err.Error()
		}
		defer res.Body.Close()
		var answer struct {
			schema.AccessToken
			Code string `json:"code"`
		}
		w.must(json.NewDecoder(res.Body).Decode(&answer))
		return answer.AccessToken, answer.Code
	}
	w.await("the client is known", time.Minute, func(map[string][]schema.Event) bool {
		_, code := get(w.t.Context(), "stranger")
		return code == schema.TokenUnknownUser
	})
	return get
}

// change changes a user's stored record, as no worker would do.
func (w *world) change(user string, f func(*grant.Grant)) {
	w.t.Helper()
	for {
		g, err := w.store.Load(w.t.Context(), grant.Key{Provider: provider, User: user})
		w.must(err)
		f(&g)
		g.Version++
		if _, err = w.store.Save(w.t.Context(), g); !errors.Is(err, grant.ErrConflict) {
			w.must(err)
			return
		}
	}
}

func expired(g *grant.Grant) { g.Pair.ExpiresAt = time.Now().Add(-time.Minute) }

// in has users signed in and synced.
func (w *world) in(users ...string) {
	w.t.Helper()
	p := w.publisher()
	for _, user := range users {
		w.login(p, user)
	}
	w.await("all are in", time.Minute, func(all map[string][]schema.Event) bool {
		for _, user := range users {
			if len(all[user]) == 0 {
				return false
			}
		}
		return true
	})
}

// tokenOf asks for a token as a service does: again, as long as it is told to ask again. On a busy
// machine the store may take its time.
func tokenOf(
	ctx context.Context, nc *nats.Conn, whom consumers.Whom,
) (token schema.AccessToken, err error) {
	for {
		token, err = consumers.Token(ctx, nc, whom, 0)
		no, ok := errors.AsType[*schema.NoToken](err)
		again := ok && no.RetryAfterSeconds > 0 || errors.Is(err, context.DeadlineExceeded)
		if !again || ctx.Err() != nil {
			return token, err
		}
	}
}

// Ten thousand services ask two workers for the token of a user whose token has ended. The refresh
// token is presented once, and all of them have the new token.
func TestTokenForAllWhoAskAtOnce(t *testing.T) {
	const askers = 10_000
	slow := standin.Options{Latency: 300 * time.Millisecond}
	w := newWorld(t, options{concurrency: 8, provider: slow})
	w.follow()
	w.start()
	w.start()
	w.in("u")
	w.change("u", expired)
	before, err := w.store.Load(t.Context(), grant.Key{Provider: provider, User: "u"})
	w.must(err)

	var all sync.WaitGroup
	var mu sync.Mutex
	given := map[string]int{}
	service, whom := w.connect().Conn(), consumers.Whom{Provider: provider, User: "u"}
	for range askers {
		all.Go(func() {
			token, err := tokenOf(t.Context(), service, whom)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			given[token.AccessToken]++
		})
	}
	all.Wait()
	after, err := w.store.Load(t.Context(), grant.Key{Provider: provider, User: "u"})
	w.must(err)
	token := after.Pair.Access.Reveal()
	if given[token] != askers || after.Pair.Access.Equal(before.Pair.Access) {
		t.Errorf("%d of %d have the new token, among %d", given[token], askers, len(given))
	}
	if n := w.provider.Renewals("u"); n != 1 {
		t.Errorf("the refresh token was presented %d times", n)
	}
}

// The caller hangs up while the provider has the refresh token. The pair is still saved.
func TestHangingUpDoesNotStopTheExchange(t *testing.T) {
	w := newWorld(t, options{concurrency: 8})
	w.follow()
	get := w.reader(w.start())
	w.in("u")
	w.change("u", expired)
	ctx, hangUp := context.WithCancel(t.Context())
	w.provider.SetFault(func(standin.Request) *standin.Fault { hangUp(); return nil })
	if got, said := get(ctx, "u"); got.AccessToken != "" ||
		!strings.Contains(said, context.Canceled.Error()) {
		t.Errorf("%+v, %q", got, said)
	}
	w.await("the pair is saved", time.Minute, func(map[string][]schema.Event) bool {
		g, err := w.store.Load(t.Context(), grant.Key{Provider: provider, User: "u"})
		return err == nil && g.Pair.ExpiresAt.After(time.Now())
	})
	if n := w.provider.Renewals("u"); n != 1 {
		t.Errorf("the refresh token was presented %d times", n)
	}
}

func TestWhoGetsNoToken(t *testing.T) {
	w := newWorld(t, options{
		concurrency: 8,
		settings:    []string{"RENEWD_POLICY_RETRY_MIN=10s"},
	})
	w.follow()
	w.start()
	service := w.connect().Conn()
	w.in("good", "short", "ended", "alone", "suspended", "signed-out")
	w.change("short", func(g *grant.Grant) { g.Pair.ExpiresAt = time.Now().Add(40 * time.Second) })
	w.change("ended", expired)
	w.change("alone", func(g *grant.Grant) {
		g.Pair.Refresh, g.Pair.ExpiresAt = secret.Value{}, time.Now().Add(50*time.Second)
	})
	w.change("suspended", func(g *grant.Grant) { g.Status = grant.Suspended })
	w.change("signed-out", func(g *grant.Grant) {
		g.Status, g.Verdict = grant.ReauthRequired, &grant.Verdict{Reason: schema.ReasonRevoked}
	})
	w.provider.SetFault(func(standin.Request) *standin.Fault { return &standin.Fault{Status: 503} })
	// This login may come from any client that may publish, as the provider has not named its user.
	_, err := w.publisher().Login(t.Context(), provider, "candidate", publishers.Tokens{
		AccessToken: "sealed by anybody", RefreshToken: "as well", ExpiresIn: time.Hour,
	})
	w.must(err)
	w.await("the candidate is stored", time.Minute, func(map[string][]schema.Event) bool {
		_, err := w.store.Load(t.Context(), grant.Key{Provider: provider, User: "candidate"})
		return err == nil
	})

	var all sync.WaitGroup
	for user, want := range map[string]string{
		"good": "", "short": schema.ShortDelayed, "alone": schema.ShortNoRefreshToken,
		"ended": schema.TokenTryAgain, "candidate": schema.TokenTryAgain,
		"nobody": schema.TokenUnknownUser, "suspended": schema.TokenSuspended,
		"signed-out": schema.TokenSignIn,
	} {
		all.Go(func() {
			whom := consumers.Whom{Provider: provider, User: user}
			got, err := consumers.Token(t.Context(), service, whom, 0)
			no, refused := errors.AsType[*schema.NoToken](err)
			switch has := got.AccessToken != ""; {
			case err == nil && (!has || got.Short != want):
				t.Errorf("%s: token %v, short %q, want %q", user, has, got.Short, want)
			case err != nil && (has || !refused || no.Code != want):
				t.Errorf("%s: token %v, %v, want %q", user, has, err, want)
			case want == schema.TokenTryAgain && no.RetryAfter() <= 0:
				t.Errorf("%s: no word of when to try again: %+v", user, no)
			}
		})
	}
	all.Wait()
	// Asking while nothing works has signed no user out.
	for user, all := range w.heard() {
		for _, e := range all {
			if e.Type == schema.UserReauthRequired {
				t.Errorf("%s was signed out", user)
			}
		}
	}
}

func TestTokensAreReadWhileNATSIsDown(t *testing.T) {
	w := newWorld(t, options{concurrency: 8, postgres: true})
	stop := w.follow()
	get := w.reader(w.start())
	w.in("good", "ended")
	w.change("ended", expired)
	stop()
	w.nats.Shutdown()
	if got, code := get(t.Context(), "good"); got.AccessToken == "" || got.Short != "" {
		t.Errorf("short %q, %q", got.Short, code)
	}
	if got, code := get(t.Context(), "ended"); got.AccessToken != "" ||
		code != schema.TokenTryAgain {
		t.Errorf("token %v, %q", got.AccessToken != "", code)
	}
}
