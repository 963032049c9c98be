package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	client "github.com/redis/go-redis/v9"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/session"
	"github.com/renewd/renewd/schema"
)

// Config is how users stand in an app's Redis.
type Config struct {
	// URL is redis:// or rediss:// (TLS), user:password@host:port/database. Required.
	URL secret.Value
	// Prefix starts each key: provider and user follow, with a colon between them. Required.
	Prefix string
	// TTL is how long a hash is kept after it was written last, a minute or more. Required.
	TTL time.Duration
	// WriteTokens lets access tokens be written: then every reader of the keys may use the tokens.
	WriteTokens bool
	// RootCAs check the server's certificate. nil: the system's.
	RootCAs *x509.CertPool
}

// Check names the first wrong field, as the settings have it.
func (c Config) Check() error {
	if _, err := c.options(); err != nil {
		return err
	}
	if c.Prefix == "" {
		return errors.New("prefix: missing: what do the keys begin with?")
	}
	if c.TTL < time.Minute {
		return errors.New("ttl: want a minute or more")
	}
	return nil
}

// The limits of one delivery.
const (
	dialLimit = 5 * time.Second
	callLimit = 10 * time.Second
)

// options read the address. The error shows nothing of the address.
func (c Config) options() (*client.Options, error) {
	if c.URL.IsZero() {
		return nil, errors.New("redis_url: missing: the app's Redis")
	}
	o, err := client.ParseURL(c.URL.Reveal())
	if err != nil || o.Network != "tcp" && o.Network != "unix" {
		return nil, errors.New("redis_url: want redis://user:password@host:6379/0, or rediss:// " +
			"for TLS, with special characters of the password percent-encoded")
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = dialLimit, callLimit, callLimit
	o.MaxRetries = -1 // package sink retries
	o.ContextTimeoutEnabled = true
	if o.TLSConfig != nil {
		o.TLSConfig = &tls.Config{
			ServerName: o.TLSConfig.ServerName, RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12,
		}
	}
	return o, nil
}

// Host names the server, and nothing else of its address. clear: a password, or the written values,
// cross the network without TLS.
func (c Config) Host() (host string, clear bool) {
	o, err := c.options()
	if err != nil {
		return "", false
	}
	return o.Addr, o.Network == "tcp" && o.TLSConfig == nil
}

// Target writes users into an app's Redis.
type Target struct {
	config Config
	client *client.Client
	load   session.Loader
}

// New returns the target of a Redis. New connects to nothing yet.
func New(c Config, load session.Loader) (*Target, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	o, err := c.options()
	if err != nil {
		return nil, err
	}
	return &Target{config: c, client: client.NewClient(o), load: load}, nil
}

// Close ends the connections.
func (t *Target) Close() { _ = t.client.Close() } // nothing is under way

// write replaces a hash that has no newer version. Versions are less than 2^53: milliseconds since
// 1970, mostly.
var write = client.NewScript(`
local known = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if known and known > tonumber(ARGV[1]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1`)

// Deliver writes the store's present facts about the outcome's user, or deletes the hash after an
// erasure.
func (t *Target) Deliver(ctx context.Context, e schema.Event) error {
	switch e.Type {
	case schema.UserSynced, schema.UserReauthRequired, schema.UserSignedOut, schema.UserForgotten,
		schema.UserSuspended:
	default:
		return nil
	}
	s, err := session.Read(ctx, t.load, e)
	if s == nil || err != nil {
		return err
	}
	key := t.config.Prefix + e.Provider + ":" + e.User
	if s.Forgotten() {
		return blame(t.client.Del(ctx, key).Err())
	}
	args := []any{strconv.FormatInt(s.Grant.Version, 10), t.config.TTL.Milliseconds()}
	for _, member := range t.members(s) {
		args = append(args, member[0], member[1])
	}
	return blame(write.Run(ctx, t.client, []string{key}, args...).Err())
}

// members are the members of a hash.
func (t *Target) members(s *session.Session) (all [][2]string) {
	add := func(name, value string) {
		if value != "" {
			all = append(all, [2]string{name, value})
		}
	}
	add("provider", s.Grant.Provider)
	add("user", s.Grant.User)
	add("version", strconv.FormatInt(s.Grant.Version, 10))
	add("status", string(s.Grant.Status))
	add("reason", s.Reason())
	add("live", map[bool]string{false: "0", true: "1"}[s.Lives()])
	add("synced_at", unix(s.Grant.SyncedAt))
	add("expires_at", unix(s.ExpiresAt()))
	if t.config.WriteTokens {
		add("access_token", s.AccessToken())
	}
	return all
}

func unix(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return strconv.FormatInt(at.Unix(), 10)
}

// blame is an error of Redis for the sink. All values in a hash are renewd's own, so only a single
// error is one user's: a key of another type.
func blame(err error) error {
	if err == nil {
		return nil
	}
	if said, ok := errors.AsType[client.Error](err); ok {
		code, _, _ := strings.Cut(said.Error(), " ")
		f := &sink.Fault{Blame: sink.Unreachable, Err: fmt.Errorf("Redis answered %.20q%s", code,
			explain[code])}
		switch code {
		case "WRONGTYPE":
			f.Blame = sink.Refused
		case "ERR", "BUSY":
			f.Blame = sink.Unclear
		}
		return f
	}
	_, op := errors.AsType[*net.OpError](err)
	switch {
	case op:
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errors.New("Redis took too long")
	}
	return &sink.Fault{Blame: sink.Unreachable, Err: errors.New("Redis cannot be reached")}
}

// explain is what a code means to an operator.
var explain = map[string]string{
	"WRONGTYPE":  ": the user's key is no hash: change prefix, or delete the key",
	"NOAUTH":     ": it wants a password",
	"WRONGPASS":  ": the user or the password is wrong",
	"NOPERM":     ": the user may not do this: it needs evalsha, eval, hget, hset, pexpire and del",
	"READONLY":   ": a replica: point redis_url at the primary",
	"OOM":        ": it is full",
	"MISCONF":    ": it cannot save to its disk",
	"LOADING":    ": it is starting",
	"MASTERDOWN": ": a replica without its primary",
	"MOVED":      ": it is a cluster, and renewd speaks to one server",
}
