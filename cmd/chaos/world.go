package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/topology"
)

// world is everything that runs: providers in this process, and everything else in separate
// processes.
type world struct {
	options
	dir       string
	binary    string
	config    string // the settings file
	providers map[string]*standIn
	owners    *owners
	nodes     []*node
	workers   []*worker
	outside   *outside
	database  *pgtest.Server // nil where grants are kept in NATS KV
	nc        *nats.Conn
	js        jetstream.JetStream
	ended     time.Time // when the last fault was healed
}

// newWorld starts all processes and waits until every worker is ready.
func newWorld(ctx context.Context, o options, say func(string, ...any)) (w *world, err error) {
	w = &world{options: o, providers: map[string]*standIn{}}
	w.owners = &owners{workers: func() []*worker { return w.workers }, byAddr: map[string]*worker{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.dir, err = os.MkdirTemp(o.Dir, "chaos"); err != nil {
		return w, err
	}
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"build renewd", w.build},
		{"start the providers", w.startProviders},
		{"start PostgreSQL", w.startDatabase},
		{"start an app outside", w.startOutside},
		{"start NATS", w.startNodes},
		{"start the workers", w.startWorkers},
		{"connect", w.connect},
	}
	for _, s := range steps {
		say("%s", s.what)
		if err := s.do(ctx); err != nil {
			return w, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return w, nil
}

func (w *world) startDatabase(context.Context) (err error) {
	if w.Store == storePostgres {
		w.database, err = pgtest.Start(pgtest.Options{Durable: true, TCP: true})
	}
	return err
}

func (w *world) startNodes(ctx context.Context) (err error) {
	if w.nodes, err = newNodes(w.Nodes, w.dir, w.Store == storeKV); err != nil {
		return err
	}
	for _, n := range w.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return w.natsReady(ctx, time.Minute)
}

// natsReady waits until JetStream answers, for which a cluster needs a leader.
func (w *world) natsReady(ctx context.Context, limit time.Duration) error {
	return eventually(ctx, limit, func() error {
		nc, err := nats.Connect(w.natsURL(), nats.Timeout(time.Second),
			nats.RetryOnFailedConnect(false))
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		_, err = js.AccountInfo(ctx)
		return err
	})
}

func (w *world) natsURL() string {
	var urls []string
	for _, n := range w.nodes {
		urls = append(urls, n.url())
	}
	return strings.Join(urls, ",")
}

// command is renewd with this world's settings. k is the worker to run as, or nil.
func (w *world) command(k *worker, args ...string) *exec.Cmd {
	cmd := exec.Command(w.binary, args...)
	cmd.Dir = w.dir
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "RENEWD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	set := map[string]string{
		"CONFIG":        w.config,
		"NATS_URL":      w.natsURL(),
		"KEYS_FILE":     w.keysFile(),
		"DATA_DIR":      w.dir,
		"STREAMS_APPLY": "true",
		"DRAIN_TIMEOUT": "20s",
	}
	if len(w.nodes) == 3 {
		set["NATS_REPLICAS"] = "3"
	}
	if w.database != nil {
		set["DATABASE_URL"] = w.database.URL("postgres")
	}
	if k != nil {
		set["HTTP_ADDR"] = k.http
		if k.database != nil {
			set["DATABASE_URL"] = "postgres://renewd@" + k.database.Addr() +
				"/postgres?sslmode=disable"
		}
	}
	if k != nil {
		cmd.Env = append(cmd.Env, clockFileEnv+"="+k.clock)
	}
	for name, value := range set {
		cmd.Env = append(cmd.Env, "RENEWD_"+name+"="+value)
	}
	return cmd
}

func (w *world) connect(context.Context) (err error) {
	w.nc, err = nats.Connect(w.natsURL(), nats.Name("chaos"), nats.MaxReconnects(-1),
		nats.ReconnectWait(200*time.Millisecond), nats.PingInterval(5*time.Second),
		nats.MaxPingsOutstanding(2))
	if err != nil {
		return err
	}
	w.js, err = jetstream.New(w.nc)
	return err
}

// openStore reads the grants as a worker would.
func (w *world) openStore(ctx context.Context) (grant.Store, func(), error) {
	keys, err := w.keyring()
	if err != nil {
		return nil, nil, err
	}
	if w.database != nil {
		s, err := postgres.Open(ctx, postgres.Config{
			URL:    secret.New(w.database.URL("postgres")),
			Cipher: keys,
		})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	}
	s, err := natskv.Open(ctx, w.js, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: keys,
		Now:    time.Now,
	})
	return s, func() {}, err
}

// close ends every process and removes the database, and the run's folder too unless Keep is set.
func (w *world) close() {
	if w.nc != nil {
		w.nc.Close()
	}
	for _, k := range w.workers {
		k.kill()
		if k.database != nil {
			k.database.Close()
		}
	}
	for _, n := range w.nodes {
		n.kill()
		for _, l := range n.links {
			l.Close()
		}
	}
	if w.database != nil {
		w.database.Remove()
	}
	w.outside.close()
	for _, p := range w.providers {
		_ = p.http.Close() // no client is left, so errors do not matter
	}
	if !w.Keep {
		_ = os.RemoveAll(w.dir)
	}
}

// eventually calls try until try returns no error, or the limit is reached.
func eventually(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
