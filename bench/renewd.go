package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/internal/testkit/storetest"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

const providerID = "propelauth"

// profiler is compiled only into the measured renewd, and only when a profile is asked for.
//
//go:embed profiler.go.txt
var profiler []byte

// build makes the measured renewd, from the source beside this module.
func (b *bench) build(ctx context.Context) error {
	if b.Binary != "" {
		b.renewd = b.Binary
		return nil
	}
	root, err := filepath.Abs(b.Root)
	if err != nil {
		return err
	}
	b.renewd = filepath.Join(b.dir, "renewd")
	args := []string{"build", "-o", b.renewd}
	if b.Profile != "" {
		if err := os.MkdirAll(b.Profile, 0o750); err != nil {
			return fmt.Errorf("profile: %w", err)
		}
		file, overlay := filepath.Join(b.dir, "profiler.go"), filepath.Join(b.dir, "overlay.json")
		text, err := json.Marshal(map[string]any{
			"Replace": map[string]string{filepath.Join(root, "cmd/renewd/profiler.go"): file},
		})
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, profiler, 0o600); err != nil {
			return err
		}
		if err := os.WriteFile(overlay, text, 0o600); err != nil {
			return err
		}
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/renewd")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build renewd: %w: %s", err, out)
	}
	return nil
}

// daemon is one `renewd serve` with its own streams, database and keyring.
type daemon struct {
	*process
	b        *bench
	dir      string
	env      []string
	natsURL  string
	http     string
	database string
	keys     *seal.Keyring
	nc       *nats.Conn
	js       jetstream.JetStream
	engine   *stream.Engine
	store    *postgres.Store
}

// options of one daemon.
type daemonOptions struct {
	provider    *provider
	concurrency int
	natsURL     string   // empty: embedded
	more        []string // environment
}

// newDaemon starts renewd on a new database and waits until renewd is ready.
func (b *bench) newDaemon(ctx context.Context, o daemonOptions) (*daemon, error) {
	d := &daemon{b: b}
	var err error
	if d.dir, err = os.MkdirTemp(b.dir, "renewd"); err != nil {
		return nil, err
	}
	if d.database, err = b.newDatabase(ctx); err != nil {
		return nil, err
	}
	if d.keys, err = seal.NewKeyring(time.Now()); err != nil {
		return nil, err
	}
	raw, err := d.keys.Marshal()
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "keys.json"), raw, 0o600); err != nil {
		return nil, err
	}
	if err := d.settings(o); err != nil {
		return nil, err
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	return d, d.connect(ctx)
}

func (d *daemon) settings(o daemonOptions) error {
	listen, err := proc.FreeAddr()
	if err != nil {
		return err
	}
	if d.http, err = proc.FreeAddr(); err != nil {
		return err
	}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "RENEWD_") {
			d.env = append(d.env, kv)
		}
	}
	set := map[string]string{
		"DATA_DIR":             d.dir,
		"DATABASE_URL":         d.database,
		"HTTP_ADDR":            d.http,
		"AUTH_URL":             o.provider.url,
		"CLIENT_ID":            "renewd-test",
		"ALLOW_HTTP_LOOPBACK":  "true",
		"PROVIDER_CONCURRENCY": fmt.Sprint(o.concurrency),
		"LOG_LEVEL":            "warn",
	}
	if d.natsURL = o.natsURL; d.natsURL == "" {
		set["NATS_LISTEN"], d.natsURL = listen, "nats://"+listen
	} else {
		set["NATS_URL"], set["STREAMS_APPLY"] = o.natsURL, "true"
	}
	for name, value := range set {
		d.env = append(d.env, "RENEWD_"+name+"="+value)
	}
	d.env = append(d.env, o.more...)
	return nil
}

// start starts the process, for the first time or again, and waits until the process is ready.
func (d *daemon) start() (err error) {
	cmd := exec.Command(d.b.renewd, "serve")
	cmd.Dir, cmd.Env = d.dir, d.env
	if d.process, err = launch(d.b.dir, "renewd", cmd); err != nil {
		return err
	}
	return eventually(time.Minute, func() error {
		if !d.Running() {
			return fmt.Errorf("renewd ended: %s", d.lastWords())
		}
		res, err := http.Get("http://" + d.http + "/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: status %d", res.StatusCode)
		}
		return nil
	})
}

func (d *daemon) connect(ctx context.Context) (err error) {
	d.nc, err = nats.Connect(d.natsURL, nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		return err
	}
	if d.js, err = jetstream.New(d.nc); err != nil {
		return err
	}
	if d.engine, err = stream.NewEngine(d.js, stream.Config{}); err != nil {
		return err
	}
	d.store, err = postgres.Open(ctx, postgres.Config{
		URL:      secret.New(d.database),
		Cipher:   d.keys,
		MaxConns: 8,
	})
	return err
}

func (d *daemon) close() {
	if d == nil {
		return
	}
	if d.nc != nil {
		d.nc.Close()
	}
	if d.store != nil {
		d.store.Close()
	}
	d.kill()
	_ = os.RemoveAll(d.dir)
}

// plan describes the grants to seed.
type plan struct {
	users int
	// due is when all grants are due, or the first grant if spread is set. Zero means soon. If due
	// is already past once all grants are stored, seed puts due off.
	due    time.Time
	spread time.Duration
	ago    time.Duration // how old the tokens are
	life   time.Duration // of access tokens
	// long means that renewd believes the access tokens still good, and learns the truth from
	// userinfo.
	long bool
	// first means no profile was synced before.
	first bool
}

func (p plan) dueOf(n int) time.Time {
	return p.due.Add(time.Duration(float64(p.spread) * float64(n) / float64(p.users)))
}

// seed has users sign in at the provider, and stores and arms their grants as a login would. Their
// profiles have been synced before, as most users' have. seed returns when the grants are due.
func (d *daemon) seed(ctx context.Context, p *provider, plan plan) (time.Time, error) {
	if plan.due.IsZero() {
		// The grants must not be long overdue when the timers fire, or the reconciler would wake
		// the grants.
		plan.due = time.Now().Add(time.Duration(plan.users) * 500 * time.Microsecond)
	}
	versions := make([]int64, plan.users)
	if err := d.seedStore(ctx, p, plan, versions); err != nil {
		return plan.due, err
	}
	if soonest := time.Now().Add(
		3*time.Second + time.Duration(plan.users)*200*time.Microsecond,
	).Truncate(time.Second); plan.due.Before(soonest) {
		plan.due = soonest
	}
	err := parallel(256, plan.users, func(n int) error {
		at := plan.dueOf(n)
		g := grant.Grant{Key: keyOf(n), Version: versions[n]}
		work := g.NextTimer(at)
		if plan.long && !plan.first {
			// A timer set by renewd knows that the token has run out. A request for a sync does
			// not.
			work = grant.Work{
				Cause: schema.Cause{
					ID:     fmt.Sprint("request-", n),
					Type:   schema.UserRefreshDue,
					Source: "/bench",
					Time:   at,
				},
				Mark: grant.Mark{Version: versions[n]},
			}
		}
		return d.engine.Arm(ctx, keyOf(n), at, work)
	})
	if late := time.Since(plan.due); err == nil && late > -500*time.Millisecond {
		err = fmt.Errorf("arming timers took %v too long: is the machine busy with something else?",
			late+500*time.Millisecond)
	}
	return plan.due, err
}

// seedStore stores the grants and notes their versions.
func (d *daemon) seedStore(ctx context.Context, p *provider, plan plan, versions []int64) error {
	client, err := idp.New(idp.Config{
		ID:                providerID,
		BaseURL:           p.url,
		ClientID:          "renewd-test",
		AllowHTTPLoopback: true,
		MaxConns:          64,
	},
		idp.Telemetry{
			Tracers: tracenoop.NewTracerProvider(),
			Meters:  metricnoop.NewMeterProvider(),
		})
	if err != nil {
		return err
	}
	defer client.Close()
	for from := 0; from < plan.users; from += page {
		n := min(page, plan.users-from)
		fresh, err := p.signIn(ctx, from, n, 0)
		if err != nil {
			return err
		}
		tokens, err := p.signIn(ctx, from, n, plan.ago)
		if err != nil {
			return err
		}
		err = parallel(64, n, func(i int) error {
			profile, err := client.UserInfo(ctx, secret.New(fresh[i][0]), userName(from+i))
			if err != nil {
				return err
			}
			stored, err := grant.NewProfile(profile)
			if err != nil {
				return err
			}
			g := plan.grantOf(from+i, tokens[i], stored)
			versions[from+i] = g.Version
			_, err = d.store.Save(ctx, g)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p plan) grantOf(n int, tokens [2]string, profile grant.Profile) grant.Grant {
	now := time.Now()
	sent := now.Add(-p.ago)
	pair := grant.Pair{
		Access:    secret.New(tokens[0]),
		Refresh:   secret.New(tokens[1]),
		ExpiresAt: sent.Add(p.life),
		Lifetime:  p.life,
		SentAt:    sent,
	}
	if p.long {
		pair.ExpiresAt, pair.Lifetime = now.Add(time.Hour), 2*time.Hour
	}
	g := storetest.SignedIn(keyOf(n), pair, grant.Position{Stream: now, Sequence: uint64(n + 1)},
		grant.Turn{Now: now, Nonce: userName(n), Policy: new(grant.Policy{}.WithDefaults())})
	g.NextDueAt = p.dueOf(n)
	if !p.first {
		g.Profile, g.SyncedAt = profile, now
	}
	return g
}

// parallel calls do for 0 to n-1, so many at a time, until the first error.
func parallel(workers, n int, do func(i int) error) error {
	var g errgroup.Group
	var failed atomic.Bool
	for w := range workers {
		g.Go(func() error {
			for i := w; i < n && !failed.Load(); i += workers {
				if err := do(i); err != nil {
					failed.Store(true)
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// outcomes counts the messages in OUTCOMES.
func (d *daemon) outcomes(ctx context.Context) (uint64, error) {
	s, err := d.js.Stream(ctx, topology.Outcomes)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}

// profile has renewd write profiles from here on until the returned function is called. Without
// --profile nothing is written.
func (d *daemon) profile(name string) (stop func()) {
	if d.b.Profile == "" {
		return func() {}
	}
	d.Signal(syscall.SIGUSR1)
	return func() {
		d.Signal(syscall.SIGUSR2)
		for kind, file := range map[string]string{
			"cpu":    name + ".pprof",
			"allocs": name + "-allocs.pprof",
		} {
			from, to := filepath.Join(d.dir, kind+".pprof"), filepath.Join(d.b.Profile, file)
			if err := eventually(10*time.Second, func() error {
				return os.Rename(from, to)
			}); err != nil {
				d.b.say("no %s profile of %s: %v", kind, name, err)
			}
		}
	}
}
