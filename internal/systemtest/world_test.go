package systemtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

const provider = "propelauth"

// world is one NATS server, one provider and one store, with any number of workers on them: each is
// a daemon, as `renewd serve` starts it.
type world struct {
	t        *testing.T
	nats     *natsd.Server
	js       jetstream.JetStream
	provider *standin.Server
	url      string
	store    grant.Store // the workers' store, as the test itself looks into it
	keys     *seal.Keyring
	environ  []string // settings of the workers that start from now on
	policy   grant.Policy
	logger   *slog.Logger
	// how the workers walk the store; the zero value as `renewd serve` does
	walks    reconcile.Reconciler
	database string   // address, where the store is PostgreSQL
	folder   string   // of the NATS server
	workers  []func() // functions that end what start began

	mu       sync.Mutex
	outcomes map[string][]schema.Event // by user, in order of the stream
	seen     chan struct{}             // receives after each outcome
}

type options struct {
	provider    standin.Options
	settings    []string // of the workers, as environment variables
	concurrency int
	postgres    bool
}

func newWorld(t *testing.T, o options) *world {
	t.Helper()
	w := &world{
		t:        t,
		logger:   slog.New(slog.DiscardHandler),
		outcomes: map[string][]schema.Event{},
		seen:     make(chan struct{}, 1),
	}
	w.provider = standin.New(o.provider)
	server := httptest.NewServer(w.provider)
	t.Cleanup(server.Close)
	w.url = server.URL
	w.environ = append([]string{
		"RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_PROVIDER_ID=" + provider,
		"RENEWD_PROVIDER_CONCURRENCY=" + strconv.Itoa(o.concurrency),
		"RENEWD_AUTH_URL=" + w.url,
		"RENEWD_REVOKE_URL=" + w.url + "/propelauth/oauth/revoke",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_CLIENT_ID=renewd-test",
		"RENEWD_CLIENT_SECRET=" + o.provider.ClientSecret,
	}, o.settings...)
	var err error
	w.keys, err = keyfile.Of(w.settings()).Make(t.Context(), time.Now())
	w.must(err)
	if o.postgres {
		w.openPostgres(databases.URL(t))
	}
	w.policy = w.settings().Providers[0].GrantPolicy()
	w.boot(t.TempDir())
	if !o.postgres {
		w.openKV()
	}
	w.must(w.engine(w.js).PublishKeys(t.Context(), w.keys.JWKS()))
	return w
}

// settings reads the workers' settings as `renewd serve` does.
func (w *world) settings(more ...string) *settings.Settings {
	w.t.Helper()
	conf, err := settings.Load("", slices.Concat(w.environ, more))
	w.must(err)
	return conf
}

// boot starts the NATS server on a folder.
func (w *world) boot(folder string) {
	w.t.Helper()
	var err error
	w.folder = folder
	w.nats, err = natsd.Start(w.t.Context(), natsd.Config{StoreDir: folder, Listen: "127.0.0.1:0"})
	w.must(err)
	w.t.Cleanup(w.nats.Shutdown)
	w.js = w.connect()
	_, err = topology.Ensure(w.t.Context(), w.js, daemon.Topology(w.settings()))
	w.must(err)
}

func (w *world) openPostgres(url string) {
	w.t.Helper()
	w.database = url
	w.environ = append(w.environ, "RENEWD_DATABASE_URL="+url)
	s, err := postgres.Open(w.t.Context(), postgres.Config{URL: secret.New(url), Cipher: w.keys})
	w.must(err)
	w.t.Cleanup(s.Close)
	w.store = s
}

func (w *world) openKV() {
	w.t.Helper()
	s, err := natskv.Open(w.t.Context(), w.js, natskv.Config{
		Bucket: topology.BucketGrants,
		Cipher: w.keys,
		Now:    time.Now,
	})
	w.must(err)
	w.store = s
}

// background runs f until the test ends, or stop is called.
func (w *world) background(f func(ctx context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f(ctx); err != nil {
			w.t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(stop)
	return stop
}

// stop ends all workers.
func (w *world) stop() {
	for _, stop := range w.workers {
		stop()
	}
	w.workers = nil
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect() jetstream.JetStream {
	w.t.Helper()
	nc, err := w.nats.Connect()
	w.must(err)
	w.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	w.must(err)
	return js
}

func (w *world) engine(js jetstream.JetStream) *stream.Engine {
	w.t.Helper()
	e, err := stream.NewEngine(js, stream.Config{})
	w.must(err)
	return e
}

// start runs one worker until the test ends or stop is called, and returns once it is up.
func (w *world) start() daemon.Running {
	w.t.Helper()
	conf := w.settings("RENEWD_NATS_URL=" + w.nats.ClientURL())
	up := make(chan daemon.Running, 1)
	d, err := daemon.Open(w.t.Context(), conf, daemon.Options{
		Environ:    os.Environ(),
		Version:    "test",
		Log:        w.logger,
		Reconciler: w.walks,
		Above: []func(context.Context, daemon.Running) error{
			func(ctx context.Context, r daemon.Running) error {
				up <- r
				<-ctx.Done()
				return nil
			},
		},
	})
	w.must(err)
	ended := make(chan struct{})
	w.workers = append(w.workers, w.background(func(ctx context.Context) error {
		defer close(ended)
		return d.Run(ctx)
	}))
	select {
	case r := <-up:
		return r
	case <-ended:
		w.t.Fatal("the worker ended at its start")
		return daemon.Running{}
	}
}

// client calls the provider as a worker does.
func (w *world) client() *idp.Provider {
	w.t.Helper()
	p, err := idp.New(w.settings().Providers[0].ClientConfig(), idp.Telemetry{})
	w.must(err)
	return p
}

// follow collects all outcomes until the test ends, or stop is called.
func (w *world) follow() (stop func()) {
	w.t.Helper()
	nc := w.connect().Conn()
	return w.background(func(ctx context.Context) error {
		return consumers.Subscribe(ctx, nc, consumers.Subscription{StartAll: true},
			func(_ context.Context, e schema.Event) error {
				w.mu.Lock()
				w.outcomes[e.User] = append(w.outcomes[e.User], e)
				w.mu.Unlock()
				select {
				case w.seen <- struct{}{}:
				default:
				}
				return nil
			})
	})
}

// heard returns the outcomes so far, by user. More may come while the caller looks at them.
func (w *world) heard() map[string][]schema.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[string][]schema.Event, len(w.outcomes))
	for user, list := range w.outcomes {
		all[user] = slices.Clone(list)
	}
	return all
}

// await waits until ok holds of the outcomes so far.
func (w *world) await(
	what string, patience time.Duration, ok func(outcomes map[string][]schema.Event) bool,
) {
	w.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		w.mu.Lock()
		done, users, n := ok(w.outcomes), len(w.outcomes), 0
		for _, list := range w.outcomes {
			n += len(list)
		}
		w.mu.Unlock()
		if done {
			return
		}
		select {
		case <-w.seen:
		case <-time.After(50 * time.Millisecond): // not everything that is waited for is an outcome
		case <-limit.C:
			w.t.Fatalf("%s: not within %v; %d outcomes of %d users; provider %+v", what, patience,
				n, users, w.provider.Stats())
		}
	}
}

func user(n int) string { return fmt.Sprintf("user-%05d", n) }

// login signs a user in at the provider and tells renewd, as an app would.
func (w *world) login(p *publishers.Publisher, name string) publishers.Receipt {
	w.t.Helper()
	t := w.provider.Login(name)
	r, err := p.Login(w.t.Context(), provider, name, publishers.Tokens{
		AccessToken:  t.Access,
		RefreshToken: t.Refresh,
		ExpiresIn:    time.Duration(t.ExpiresIn) * time.Second,
	})
	w.must(err)
	return r
}

// newcomer has one more user sign in, and waits until that user is synced. The user signs in again
// now and then: on a busy machine a login may be taken up only after its access token has ended.
func (w *world) newcomer() {
	w.t.Helper()
	p := w.publisher()
	var last time.Time
	w.await("who signs in is synced", time.Minute, func(all map[string][]schema.Event) bool {
		if time.Since(last) > 5*time.Second {
			w.login(p, "newcomer")
			last = time.Now()
		}
		return len(all["newcomer"]) > 0
	})
}

func (w *world) publisher() *publishers.Publisher {
	w.t.Helper()
	p, err := publishers.New(w.connect().Conn(), publishers.WithSource("/app"))
	w.must(err)
	return p
}

// raw publishes as any NATS client would, without the SDK.
func raw(nc *nats.Conn, subject, body string, header ...string) error {
	m := &nats.Msg{Subject: subject, Data: []byte(body), Header: nats.Header{}}
	for i := 0; i < len(header); i += 2 {
		m.Header[header[i]] = []string{header[i+1]}
	}
	return nc.PublishMsg(m)
}

func decode[T any](t *testing.T, e schema.Event) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(e.Data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}
