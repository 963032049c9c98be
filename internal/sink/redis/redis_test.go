package redis_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	client "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/redis"
	"github.com/renewd/renewd/internal/testkit/redistest"
	"github.com/renewd/renewd/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an app's Redis, a store of one user, and a sink between them.
type world struct {
	*client.Client
	t      *testing.T
	to     *redis.Target
	stored grant.Grant
	err    error
}

func config(address string) redis.Config {
	return redis.Config{URL: secret.New(address), Prefix: "renewd:", TTL: time.Hour}
}

func newWorld(t *testing.T, change func(*redis.Config)) *world {
	t.Helper()
	address := redistest.Start(t)
	o, err := client.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Client: client.NewClient(o), t: t}
	t.Cleanup(func() { w.Close() })
	c := config(address)
	change(&c)
	w.to = target(t, c, w.load)
	return w
}

func target(t *testing.T, c redis.Config,
	load func(context.Context, grant.Key) (grant.Grant, error)) *redis.Target {
	t.Helper()
	to, err := redis.New(c, load)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Close)
	return to
}

func (w *world) load(context.Context, grant.Key) (grant.Grant, error) { return w.stored, w.err }

const user = "jane@example.com"

func (w *world) deliver(of schema.Type) error {
	return w.to.Deliver(w.t.Context(), schema.Event{
		ID: "e1", Type: of, Provider: "propelauth", User: user, Data: []byte(`{}`),
	})
}

// put has the store say this of the user.
func (w *world) put(status grant.Status, version int64) {
	w.stored = grant.Grant{
		Key: grant.Key{Provider: "propelauth", User: user}, Version: version, Status: status,
		Pair: grant.Pair{
			Access: secret.New("access-token"), Refresh: secret.New("R3FRESH"),
			ExpiresAt: time.Unix(1769861700, 0),
		},
		SyncedAt: time.Unix(1769860800, 0),
	}
}

const key = "renewd:propelauth:" + user

func (w *world) has(want map[string]string) {
	w.t.Helper()
	got, err := w.HGetAll(w.t.Context(), key).Result()
	if err != nil || !maps.Equal(got, want) {
		w.t.Errorf("the hash is %v, %v, want %v", got, err, want)
	}
}

// A user's hash has what the store says now, for as long as its time to live. An older version
// changes nothing, the end of the session takes the token, and an erasure deletes it all.
func TestHashIsWhatTheStoreSays(t *testing.T) {
	for _, tokens := range []bool{false, true} {
		w := newWorld(t, func(c *redis.Config) { c.WriteTokens = tokens })
		w.put(grant.Live, 1769860800007)
		live := map[string]string{
			"provider": "propelauth", "user": user, "version": "1769860800007", "status": "live",
			"live": "1", "synced_at": "1769860800", "expires_at": "1769861700",
		}
		if tokens {
			live["access_token"] = "access-token"
		}
		for range 2 {
			if err := w.deliver(schema.UserSynced); err != nil {
				t.Fatal(err)
			}
			w.has(live)
		}
		if left := w.PTTL(t.Context(), key).Val(); left <= 59*time.Minute || left > time.Hour {
			t.Errorf("the time to live is %v", left)
		}
		w.put(grant.ReauthRequired, 1769860800006)
		if err := w.deliver(schema.UserReauthRequired); err != nil {
			t.Fatal(err)
		}
		w.has(live)
		w.put(grant.ReauthRequired, 1769860800008)
		w.stored.Verdict = &grant.Verdict{Reason: "revoked"}
		for _, of := range []schema.Type{schema.UserReauthRequired, schema.UserRefreshFailed} {
			if err := w.deliver(of); err != nil {
				t.Fatal(err)
			}
		}
		w.has(map[string]string{
			"provider": "propelauth", "user": user, "version": "1769860800008",
			"status": "reauth_required", "reason": "revoked", "live": "0",
			"synced_at": "1769860800",
		})
		w.put(grant.Forgotten, 1769860800009)
		if err := w.deliver(schema.UserForgotten); err != nil {
			t.Fatal(err)
		}
		w.has(map[string]string{})
	}
}

// What Redis answers is blamed on the user's key, or on Redis as a whole, and none of it is quoted
// that may show a secret.
func TestFaults(t *testing.T) {
	w := newWorld(t, func(*redis.Config) {})
	w.put(grant.Live, 7)
	refused := func(err error, blame sink.Blame, says string) {
		t.Helper()
		f, ok := errors.AsType[*sink.Fault](err)
		if !ok || f.Blame != blame || !strings.Contains(f.Error(), says) ||
			strings.Contains(f.Error(), "s3cret") || strings.Contains(f.Error(), user) {
			t.Errorf("%v, want %s: %s", err, blame, says)
		}
	}
	if err := w.Set(t.Context(), key, "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	refused(w.deliver(schema.UserSynced), sink.Refused, "is no hash")
	if err := w.ConfigSet(t.Context(), "requirepass", "other").Err(); err != nil {
		t.Fatal(err)
	}
	o := w.Options()
	wrong := target(t, config("unix://default:s3cret@"+o.Addr), w.load)
	e := schema.Event{Type: schema.UserSynced, Provider: "propelauth", User: user}
	refused(wrong.Deliver(t.Context(), e), sink.Unreachable, "the password is wrong")
	none := target(t, config("redis://default:s3cret@127.0.0.1:1/0"), w.load)
	refused(none.Deliver(t.Context(), e), sink.Unreachable, "cannot be reached")
	w.err = errors.New("down")
	refused(none.Deliver(t.Context(), e), sink.Unreachable, "store does not answer")
	w.err = grant.ErrNotFound
	if err := none.Deliver(t.Context(), e); err != nil {
		t.Error("a user who is not known is an error:", err)
	}
}

// Mistakes in the settings name the setting, and show no password.
func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*redis.Config){
		"":                   func(*redis.Config) {},
		"redis_url: missing": func(c *redis.Config) { c.URL = secret.Value{} },
		"redis_url: want":    func(c *redis.Config) { c.URL = secret.New("http://s3cret") },
		"prefix: missing":    func(c *redis.Config) { c.Prefix = "" },
		"ttl: want":          func(c *redis.Config) { c.TTL = time.Second },
	} {
		c := config("rediss://u:s3cret@cache.example.com:6380/1")
		change(&c)
		err := c.Check()
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if host, clear := config("rediss://u:p@cache.example.com:6380/1").Host(); clear ||
		host != "cache.example.com:6380" {
		t.Errorf("%s, in clear: %v", host, clear)
	}
	if _, clear := config("redis://u:p@cache.example.com").Host(); !clear {
		t.Error("a password in clear text is not seen")
	}
}
