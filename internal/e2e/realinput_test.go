package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

const (
	idpName     = "corp"
	userCount   = 200
	generations = 3
	endedCount  = 10
)

// settingsFor points renewd at the provider. A refused user is asked again after a second, so that
// the test need not wait for half a minute. All other settings are as shipped.
func settingsFor(p *provider) string {
	return fmt.Sprintf(`
providers:
  - id: %s
    preset: oidc
    auth_url: %s
    client_id: %s
    allow_http_loopback: true
    policy:
      floor: 1s
      confirm_min: 1s
      confirm_max: 2s
`, idpName, p.Issuer, p.ClientID)
}

// The built binary against a provider that is not ours.
func TestRealInput(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		db := startPostgres(t)
		realInput(t, func(ctx context.Context, _ *daemon, keys *seal.Keyring) (grant.Store, error) {
			s, err := postgres.Open(ctx,
				postgres.Config{URL: secret.New(db.URL("postgres")), Cipher: keys})
			if err == nil {
				t.Cleanup(s.Close)
			}
			return s, err
		}, "RENEWD_DATABASE_URL="+db.URL("postgres"))
	})
	t.Run("natskv", func(t *testing.T) {
		t.Parallel()
		realInput(t, func(ctx context.Context, d *daemon, keys *seal.Keyring) (grant.Store, error) {
			server, err := natsd.Start(ctx, natsd.Config{StoreDir: filepath.Join(d.data, "nats")})
			if err != nil {
				return nil, err
			}
			t.Cleanup(server.Shutdown)
			nc, err := server.Connect()
			if err != nil {
				return nil, err
			}
			t.Cleanup(nc.Close)
			js, err := jetstream.New(nc)
			if err != nil {
				return nil, err
			}
			return natskv.Open(ctx, js, natskv.Config{
				Bucket: topology.BucketGrants,
				Cipher: keys,
				Now:    time.Now,
			})
		})
	})
}

// realInput signs users in, lets renewd renew them, asks from outside meanwhile, and ends some
// sessions at the provider. Then it compares what the provider saw, what services were told and
// what is stored with one another.
func realInput(
	t *testing.T, reopen func(context.Context, *daemon, *seal.Keyring) (grant.Store, error),
	environ ...string,
) {
	idp := startProvider(t, 8*time.Second)
	d := serve(t, settingsFor(idp), environ...)
	nc := connect(t, "nats://"+d.nats)
	told := newLedger()
	follow(t, nc, told)

	pub, err := publishers.New(nc, publishers.WithSource("/e2e"))
	if err != nil {
		t.Fatal(err)
	}
	var users []string
	for n := range userCount {
		user := fmt.Sprintf("user|%03d@example.com", n)
		users = append(users, user)
		tk := must(idp.mint(t.Context(), user))(t)
		if _, err := pub.Login(t.Context(), idpName, user, publishers.Tokens{
			AccessToken:  tk.AccessToken,
			RefreshToken: tk.RefreshToken,
			ExpiresIn:    time.Duration(tk.ExpiresIn) * time.Second,
		}); err != nil {
			t.Fatal(err)
		}
	}
	// A request that overtakes its user's login is answered unknown_grant, since logins and
	// requests are two streams.
	eventually(t, time.Minute, func() error { return told.signedIn(users) })
	stopAsking := ask(t, nc, users)
	eventually(t, 2*time.Minute, func() error {
		return told.reached(users, func(string) int { return generations })
	})

	ended := users[:endedCount]
	for _, user := range ended {
		if err := idp.end(t.Context(), user); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, time.Minute, func() error { return told.signedOut(ended) })
	before := told.generations()
	eventually(t, time.Minute, func() error {
		return told.reached(users[endedCount:], func(user string) int { return before[user] + 1 })
	})
	stopAsking()
	d.stop(t)

	for _, wrong := range told.verdict(ended) {
		t.Error(wrong)
	}
	stats := must(idp.stats(t.Context()))(t)
	if stats.Reuse != 0 || stats.Revoked != 0 {
		t.Errorf("the provider has seen reuse: %+v", stats)
	}
	t.Logf("provider: %+v", stats)
	keys := must(seal.ParseKeyring(must(os.ReadFile(filepath.Join(d.data, "keys.json")))(t)))(t)
	checkStored(t, idp, must(reopen(t.Context(), d, keys))(t), users, ended)
}

// checkStored presents every stored token. The provider must take each of them, because a stored
// token is the newest there is.
func checkStored(t *testing.T, idp *provider, store grant.Store, users, ended []string) {
	t.Helper()
	for _, user := range users {
		g, err := store.Load(t.Context(), grant.Key{Provider: idpName, User: user})
		if err != nil {
			t.Error(err)
			continue
		}
		if slices.Contains(ended, user) {
			if g.Status != grant.ReauthRequired || !g.Pair.Refresh.IsZero() {
				t.Errorf("%s is stored as %s, with a refresh token: %v",
					user, g.Status, !g.Pair.Refresh.IsZero())
			}
			continue
		}
		tk, err := idp.refresh(t.Context(), g.Pair.Refresh.Reveal())
		if err != nil || tk.Error != "" || tk.AccessToken == "" {
			t.Errorf("%s: the provider does not take the stored token: %s %v", user, tk.Error, err)
		}
		if p, err := g.Profile.Decode(); err != nil || p == nil || p.Email == "" || p.ID != user {
			t.Errorf("%s: stored profile %s, %v", user, g.Profile, err)
		}
	}
}

// ask publishes plain messages for one user after the other, as any service in any language would.
func ask(t *testing.T, nc *nats.Conn, users []string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			subject := "user.refresh_due." + idpName + "." +
				schema.EscapeUser(users[(n*37)%len(users)])
			body := []string{"", `{"want":"tokens"}`, `{"reason":"e2e"}`}[n%3]
			if err := nc.Publish(subject, []byte(body)); err != nil {
				t.Error(err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// follow notes every outcome.
func follow(t *testing.T, nc *nats.Conn, told *ledger) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := consumers.Subscribe(ctx, nc, consumers.Subscription{StartAll: true}, told.note)
		if err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
