package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// openedResources returns resources on a NATS server without workers: the test takes each message
// itself. More settings are those of a database.
func openedResources(t *testing.T, more ...string) *daemon.Resources {
	t.Helper()
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=c",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	env = append(env, more...)
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "", "keys", "publish")
	if len(more) > 0 {
		want(t, env, exitDone, "", "migrate")
	}
	a := &app{name: "renewd", environ: env}
	conf, err := a.load(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	p, err := a.openResources(t.Context(), conf, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// inHand takes a message as a worker does, and does not acknowledge it.
func inHand(t *testing.T, p *daemon.Resources, base, durable string) jetstream.Msg {
	t.Helper()
	c, err := p.JS.Consumer(t.Context(), base, durable)
	if err != nil {
		t.Fatal(err)
	}
	m, err := c.Next(jetstream.FetchMaxWait(10 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// What is stored of a user is shown without the keyring too, but for what only the tokens say.
func TestAUserIsShownWithoutTheKeyring(t *testing.T) {
	p := openedResources(t)
	g := grant.Grant{
		Key: grant.Key{Provider: "propelauth", User: "u"}, Version: 7, Status: grant.Suspended,
		LastError: "too_many",
		Pair:      grant.Pair{Access: secret.New("a"), Refresh: secret.New("r")},
	}
	if _, err := p.Store.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	env := []string{"RENEWD_NATS_URL=" + p.Conf.NATSURL, "RENEWD_KEYS_FILE=" + p.Conf.KeysPath()}
	out := want(t, env, exitDone, "too_many", "user", "show", "u")
	if !strings.Contains(out, g.Fingerprint()) {
		t.Errorf("with the keyring: %s", out)
	}
	env[1] = "RENEWD_KEYS_FILE=/nowhere/keys.json"
	want(t, env, exitDone, "too_many", "user", "show", "u")
	out = want(t, env, exitDone, "not shown", "user", "show", "u")
	if strings.Contains(out, g.Fingerprint()) || !strings.Contains(out, "suspended") {
		t.Errorf("without: %s", out)
	}
	want(t, env, exitFailed, "no such user", "user", "show", "other")
	want(t, env, exitFailed, "renewd keys new", "user", "forget", "u", "--yes")
	if err := os.WriteFile(p.Conf.KeysPath(), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	env[1] = "RENEWD_KEYS_FILE=" + p.Conf.KeysPath()
	want(t, env, exitFailed, "malformed keyring", "user", "show", "u")
}

// A login that a worker is handling while its user is erased does not bring the user back, and the
// erasure waits for that login.
func TestAnErasureWaitsForALoginInHandAndKeepsItOut(t *testing.T) {
	p := openedResources(t)
	k := grant.Key{Provider: "propelauth", User: "jane@example.com"}
	pub, err := publishers.New(p.NC, publishers.WithSource("/app"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pub.Login(t.Context(), k.Provider, k.User, publishers.Tokens{
		AccessToken:  "a",
		RefreshToken: "r",
		ExpiresIn:    time.Hour,
	}); err != nil {
		t.Fatal(err)
	}
	m := inHand(t, p, topology.Logins, topology.ConsumerLogin)
	looks, err := p.NC.SubscribeSync("$JS.API.CONSUMER.INFO." + topology.Logins + "." +
		topology.ConsumerLogin)
	if err != nil {
		t.Fatal(err)
	}

	forgotten := make(chan error, 1)
	entombed := make(chan struct{})
	revoked := 0
	go func() {
		cause := schema.Cause{ID: "forget-1", Type: "user.forget", Source: "/test"}
		_, err := admin.Forget(context.WithoutCancel(t.Context()), p, k, cause,
			func(context.Context, grant.Key, []secret.Value) error { revoked++; return nil })
		forgotten <- err
	}()
	go func() { // the tombstone comes first
		for {
			g, err := p.Store.Load(context.Background(), k)
			if err == nil && g.Status == grant.Forgotten {
				close(entombed)
				return
			}
			<-time.After(10 * time.Millisecond)
		}
	}()
	<-entombed
	select {
	case err := <-forgotten:
		t.Fatalf("the erasure did not wait for the login in hand: %v", err)
	default:
	}

	meta, err := m.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	logins, err := p.Logins(map[string]refresh.Provider{k.Provider: {}})
	if err != nil {
		t.Fatal(err)
	}
	err = logins.Handle(t.Context(), &runner.Message{
		Subject:    m.Subject(),
		Header:     schema.Header(m.Headers()),
		Data:       m.Data(),
		Stream:     topology.Logins,
		Sequence:   meta.Sequence.Stream,
		Time:       meta.Timestamp,
		Deliveries: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the erasure asks whether the login is being handled, and it is
		if _, err := looks.NextMsg(10 * time.Second); err != nil {
			t.Fatalf("the erasure does not look for what is in hand: %v", err)
		}
	}
	logged, err := p.JS.Stream(t.Context(), topology.Logins)
	if err != nil {
		t.Fatal(err)
	}
	if n := logged.CachedInfo().State.Msgs; n != 1 {
		t.Fatalf("%d messages in LOGINS: purged while a worker has it in hand", n)
	}
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-forgotten; err != nil {
		t.Fatal(err)
	}
	if g, err := p.Store.Load(t.Context(), k); err != nil || g.Status != grant.Forgotten ||
		g.Candidate != nil || !g.Pair.Refresh.IsZero() {
		t.Errorf("the user is back: %s, %v", g.Status, err)
	}
	if has, err := p.Engine.HasTimer(t.Context(), k); has || err != nil {
		t.Errorf("a renewal waits for somebody who is gone: %v", err)
	}
	if revoked != 0 {
		t.Errorf("revoked %d times what was never stored", revoked)
	}
}

// What the store holds is revoked before it is dropped; if that fails nothing is erased.
func TestAnErasureRevokesFirst(t *testing.T) {
	p := openedResources(t)
	k := grant.Key{Provider: "propelauth", User: "u17"}
	pair := grant.Pair{
		Access:    secret.New("a"),
		Refresh:   secret.New("the refresh token"),
		ExpiresAt: time.Now().Add(time.Hour),
	}
	turn := grant.Turn{Nonce: "n", Now: time.Now(), Policy: new(grant.Policy{}.WithDefaults())}
	g, _ := grant.LoggedIn(grant.Grant{}, k, grant.Candidate{Pair: pair}, turn)
	if _, err := p.Store.Save(t.Context(), g.AsCandidate().Proven(turn)); err != nil {
		t.Fatal(err)
	}
	cause := schema.Cause{ID: "forget-1", Type: "user.forget", Source: "/test"}
	away := errors.New("the provider does not answer")
	_, err := admin.Forget(t.Context(), p, k, cause,
		func(context.Context, grant.Key, []secret.Value) error { return away })
	if !errors.Is(err, away) {
		t.Fatalf("erased without revoking: %v", err)
	}
	if g, err := p.Store.Load(t.Context(), k); err != nil || g.Status != grant.Live {
		t.Fatalf("%s, %v", g.Status, err)
	}
	var revoked []string
	cause.ID = "forget-1" // the same person tries again: the claim is theirs
	revoke := func(_ context.Context, _ grant.Key, tokens []secret.Value) error {
		for _, token := range tokens {
			revoked = append(revoked, token.Reveal())
		}
		return nil
	}
	if _, err := admin.Forget(t.Context(), p, k, cause, revoke); err != nil {
		t.Fatal(err)
	}
	if len(revoked) != 1 || revoked[0] != "the refresh token" {
		t.Errorf("revoked %v", revoked)
	}
}

// Of a login that comes while its user is erased, and is proven before that is over, services are
// told once more: what they were told was erased with the rest.
func TestALoginDuringAnErasureIsToldAgain(t *testing.T) {
	p := openedResources(t)
	k := grant.Key{Provider: "propelauth", User: "u17"}
	signIn := func(token string, sequence uint64) {
		t.Helper()
		cur, err := p.Store.Load(t.Context(), k)
		if err != nil && !errors.Is(err, grant.ErrNotFound) {
			t.Fatal(err)
		}
		newest, err := p.Engine.NewestLogin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		c := grant.Candidate{
			Pair: grant.Pair{
				Access:    secret.New("access of " + token),
				Refresh:   secret.New(token),
				ExpiresAt: time.Now().Add(time.Hour),
				Lifetime:  time.Hour,
			},
			Login: grant.Position{
				Stream:   newest.Stream,
				Sequence: sequence,
				Time:     time.Now(),
				Token:    token,
			},
		}
		policy := grant.Policy{}.WithDefaults()
		turn := grant.Turn{Nonce: token, Now: time.Now(), Policy: &policy}
		g, what := grant.LoggedIn(cur, k, c, turn)
		if what != grant.Fresh {
			t.Fatalf("the login is %s", what)
		}
		if _, err := p.Store.Save(t.Context(), g.AsCandidate().Proven(turn)); err != nil {
			t.Fatal(err)
		}
	}
	signIn("before", 1)
	once := sync.OnceFunc(func() { signIn("meanwhile", 9) })
	cause := schema.Cause{ID: "forget-1", Type: "user.forget", Source: "/test"}
	_, err := admin.Forget(t.Context(), p, k, cause,
		func(context.Context, grant.Key, []secret.Value) error { once(); return nil })
	if err != nil {
		t.Fatal(err)
	}
	if g, err := p.Store.Load(t.Context(), k); err != nil ||
		g.Pair.Refresh.Reveal() != "meanwhile" {
		t.Fatalf("%s, %v", g.Status, err)
	}
	// Its tokens last for an hour.
	inHand(t, p, topology.Renewals, topology.ConsumerRenew(k.Provider))
}
