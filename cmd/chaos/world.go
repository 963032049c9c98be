package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/pgtest"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

// world is everything that runs: providers in this process, all else in processes of their own.
type world struct {
	options
	dir       string
	binary    string
	config    string // the settings file
	providers map[string]*standIn
	owners    *owners
	nodes     []*node
	workers   []*worker
	database  *pgtest.Server // nil where grants are kept in NATS KV
	keys      *seal.Keyring
	nc        *nats.Conn
	js        jetstream.JetStream
	ended     time.Time // when the last fault was healed
}

// worker is one `renewd serve`.
type worker struct {
	*process
	http     string
	database *link // its way to PostgreSQL; nil without one
}

// standIn is one provider.
type standIn struct {
	*idptest.Server
	id       string
	url      string
	grace    bool
	listener net.Listener
	http     *http.Server
	seen     *presentations
}

// The providers: one that takes a spent token for a while, and one that never does.
const (
	graceful = "grace"
	strict   = "strict"
)

const settingsFile = `
providers:
%s`

// Each provider is as shipped, but that the clock runs faster: tokens live seconds, so what takes minutes must too.
const providerSettings = `
  - id: %s
    auth_url: %s
    client_id: chaos
    allow_http_loopback: true
    timeout: 6s
    policy: {floor: 1s, retry_min: 1s, retry_max: 5s, retry_later: 10s, confirm_min: 5s, confirm_max: 8s}
    guard: {release: 5s, alone: 20s}
`

// newWorld starts everything and waits until every worker is ready.
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

// build makes the binary that is put to the test, unless one was given.
func (w *world) build(ctx context.Context) error {
	if w.binary = w.Binary; w.binary != "" {
		return nil
	}
	w.binary = filepath.Join(w.dir, "renewd")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", w.binary, "github.com/renewd/renewd/cmd/renewd").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (w *world) startProviders(context.Context) error {
	var all []string
	for _, id := range []string{graceful, strict} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		p := &standIn{id: id, url: "http://" + l.Addr().String(), grace: id == graceful, listener: l, seen: &presentations{owners: w.owners}}
		o := idptest.Options{
			Lifetime: w.Life, ClientID: "chaos", Latency: 20 * time.Millisecond, Rotation: idptest.Strict, Observe: p.seen.add,
		}
		if p.grace {
			o.Rotation, o.Grace = idptest.Grace, 30*time.Second
		}
		p.Server = idptest.New(o)
		p.http = &http.Server{Handler: p.Server, ReadHeaderTimeout: 10 * time.Second, ConnContext: w.owners.note}
		go func() { _ = p.http.Serve(l) }() // until it is closed
		w.providers[id] = p
		all = append(all, fmt.Sprintf(providerSettings, id, p.url))
	}
	w.config = filepath.Join(w.dir, "renewd.yaml")
	return os.WriteFile(w.config, fmt.Appendf(nil, settingsFile, strings.Join(all, "")), 0o600)
}

func (w *world) startDatabase(context.Context) (err error) {
	if w.Store == storePostgres {
		w.database, err = pgtest.Start(pgtest.Options{Durable: true, TCP: true})
	}
	return err
}

func (w *world) startNodes(ctx context.Context) (err error) {
	if w.nodes, err = newNodes(w.Nodes, w.dir); err != nil {
		return err
	}
	for _, n := range w.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return w.natsReady(ctx, time.Minute)
}

// natsReady waits until JetStream answers, with a leader for whatever there is.
func (w *world) natsReady(ctx context.Context, limit time.Duration) error {
	return eventually(ctx, limit, func() error {
		nc, err := nats.Connect(w.natsURL(), nats.Timeout(time.Second), nats.RetryOnFailedConnect(false))
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

func (w *world) startWorkers(ctx context.Context) error {
	if out, err := w.command(nil, "keys", "new").CombinedOutput(); err != nil {
		return fmt.Errorf("keys new: %w: %s", err, out)
	}
	raw, err := os.ReadFile(w.keysFile())
	if err != nil {
		return err
	}
	if w.keys, err = seal.ParseKeyring(raw); err != nil {
		return err
	}
	ports, err := freePorts(w.Workers)
	if err != nil {
		return err
	}
	workers := make([]*worker, w.Workers)
	for i, port := range ports {
		k := &worker{http: fmt.Sprintf("127.0.0.1:%d", port)}
		if w.database != nil {
			if k.database, err = w.databaseLink(); err != nil {
				return err
			}
		}
		name := fmt.Sprintf("worker-%d", i)
		k.process = &process{name: name, log: filepath.Join(w.dir, name+".log"), make: func() *exec.Cmd { return w.command(k, "serve") }}
		workers[i] = k
	}
	w.workers = workers
	for _, k := range workers {
		if err := k.start(); err != nil {
			return err
		}
	}
	return w.workersReady(ctx, time.Minute)
}

func (w *world) databaseLink() (*link, error) {
	u, err := url.Parse(w.database.URL("postgres"))
	if err != nil {
		return nil, err
	}
	return newLink(u.Host)
}

func (w *world) workersReady(ctx context.Context, limit time.Duration) error {
	for _, k := range w.workers {
		if err := eventually(ctx, limit, k.ready); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return nil
}

// ready asks /readyz.
func (k *worker) ready() error {
	if err := k.ended(); err != nil {
		return err
	}
	client := http.Client{Timeout: 3 * time.Second}
	res, err := client.Get("http://" + k.http + "/readyz")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %w: status %d", errNotReady, res.StatusCode)
	}
	return nil
}

func (w *world) keysFile() string { return filepath.Join(w.dir, "keys.json") }

// command is renewd with this world's settings; k is the worker that it is, or nil.
func (w *world) command(k *worker, args ...string) *exec.Cmd {
	cmd := exec.Command(w.binary, args...)
	cmd.Dir = w.dir
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "RENEWD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	set := map[string]string{
		"CONFIG": w.config, "NATS_URL": w.natsURL(), "KEYS_FILE": w.keysFile(), "DATA_DIR": w.dir, "STREAMS_APPLY": "true", "DRAIN_TIMEOUT": "20s",
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
			set["DATABASE_URL"] = "postgres://renewd@" + k.database.addr + "/postgres?sslmode=disable"
		}
	}
	for name, value := range set {
		cmd.Env = append(cmd.Env, "RENEWD_"+name+"="+value)
	}
	return cmd
}

func (w *world) connect(context.Context) (err error) {
	w.nc, err = nats.Connect(w.natsURL(), nats.Name("chaos"), nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond), nats.PingInterval(5*time.Second), nats.MaxPingsOutstanding(2))
	if err != nil {
		return err
	}
	w.js, err = jetstream.New(w.nc)
	return err
}

// openStore reads the grants as a worker would.
func (w *world) openStore(ctx context.Context) (grant.Store, func(), error) {
	if w.database != nil {
		s, err := postgres.Open(ctx, postgres.Config{URL: grant.NewSecret(w.database.URL("postgres")), Cipher: w.keys})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	}
	s, err := natskv.Open(ctx, w.js, natskv.Config{Bucket: stream.BucketGrants, Cipher: w.keys, Now: time.Now})
	return s, func() {}, err
}

// close ends everything and removes it, logs too unless they are to be kept.
func (w *world) close() {
	if w.nc != nil {
		w.nc.Close()
	}
	for _, k := range w.workers {
		k.kill()
		if k.database != nil {
			k.database.close()
		}
	}
	for _, n := range w.nodes {
		n.kill()
		for _, l := range n.links {
			l.close()
		}
	}
	if w.database != nil {
		w.database.Remove()
	}
	for _, p := range w.providers {
		_ = p.http.Close() // nobody is left to be served
	}
	if !w.Keep {
		_ = os.RemoveAll(w.dir)
	}
}

// eventually tries until it works.
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

// freePorts finds ports that nobody listens on.
func freePorts(n int) (ports []int, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}
