package systemtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/consumers/login"
	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/consumers/request"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/natskv"
	"github.com/renewd/renewd/internal/pgtest"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

const provider = "propelauth"

// world is one NATS server, one provider and one store, with any number of workers on them.
type world struct {
	t        *testing.T
	nats     *natsd.Server
	js       jetstream.JetStream
	provider *idptest.Server
	url      string
	store    grant.Store
	keys     *seal.Keyring
	topology stream.Topology
	policy   grant.Policy
	rules    guard.Rules
	rate     float64
	secret   string // of the client, as renewd has it
	tokenURL string // as renewd's settings have it; empty: the preset's
	logger   *slog.Logger
	tracers  trace.TracerProvider
	meters   metric.MeterProvider
	database string   // address, where the store is PostgreSQL
	folder   string   // of the NATS server
	workers  []func() // end what start began

	mu       sync.Mutex
	outcomes map[string][]schema.Event // by user, in order of the stream
	seen     chan struct{}             // gets a word after each outcome
}

type options struct {
	provider    idptest.Options
	policy      grant.Policy
	rules       guard.Rules
	rate        float64 // calls a second
	concurrency int
	postgres    bool
}

func newWorld(t *testing.T, o options) *world {
	t.Helper()
	w := &world{
		t: t, policy: o.policy.WithDefaults(), rules: o.rules, rate: o.rate, secret: o.provider.ClientSecret,
		outcomes: map[string][]schema.Event{}, seen: make(chan struct{}, 1),
		logger: slog.New(slog.DiscardHandler), tracers: tracenoop.NewTracerProvider(), meters: noop.NewMeterProvider(), topology: stream.Topology{Providers: []stream.Provider{{ID: provider, Concurrency: o.concurrency}}, Grants: !o.postgres}.WithDefaults(),
	}
	w.boot(t.TempDir())
	w.provider = idptest.New(o.provider)
	server := httptest.NewServer(w.provider)
	t.Cleanup(server.Close)
	w.url = server.URL
	var err error
	w.keys, err = seal.NewKeyring(time.Now())
	w.must(err)
	w.must(w.engine(w.js).PublishKeys(t.Context(), w.keys.JWKS()))
	if o.postgres {
		w.openPostgres(databases.URL(t))
	} else {
		w.openKV()
	}
	return w
}

// boot starts the NATS server on a folder.
func (w *world) boot(folder string) {
	w.t.Helper()
	var err error
	w.folder = folder
	w.nats, err = natsd.Start(w.t.Context(), natsd.Config{StoreDir: folder})
	w.must(err)
	w.t.Cleanup(w.nats.Shutdown)
	w.js = w.connect()
	_, err = stream.Ensure(w.t.Context(), w.js, w.topology)
	w.must(err)
}

func (w *world) openPostgres(url string) {
	w.t.Helper()
	w.database = url
	s, err := postgres.Open(w.t.Context(), postgres.Config{URL: grant.NewSecret(url), Cipher: w.keys})
	w.must(err)
	w.t.Cleanup(s.Close)
	w.store = s
}

func (w *world) openKV() {
	w.t.Helper()
	s, err := natskv.Open(w.t.Context(), w.js, natskv.Config{Bucket: stream.BucketGrants, Cipher: w.keys, Now: time.Now})
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

// start runs one worker on a connection of its own until the test ends.
func (w *world) start(slots int) {
	w.t.Helper()
	js := w.connect()
	e := w.engine(js)
	client := w.client(slots)
	known := w.guard(js, e, client.Settings())
	refresher, err := refresh.New(refresh.Config{
		Store: w.store, Stream: e, Cipher: w.keys, Parse: e.ParseWork, Rand: rand.Float64, Logger: w.logger, Meter: w.meters.Meter("test"),
		Providers: map[string]refresh.Provider{provider: known(refresh.Provider{Client: client, Policy: w.policy})},
	})
	w.must(err)
	login, err := login.New(login.Config{
		Store: w.store, Stream: e, Policies: map[string]grant.Policy{provider: w.policy}, Open: w.open,
		KeyMissing: func(err error) bool { return errors.Is(err, seal.ErrUnknownKey) }, Now: e.Now, Rand: rand.Float64, Logger: w.logger,
	})
	w.must(err)
	request := &request.Consumer{Stream: e, Known: func(id string) bool { return id == provider }}
	w.run(js, e, stream.Renewals, stream.ConsumerRenew(provider), slots, refresher.Handle, refresher.PutOff)
	w.run(js, e, stream.Logins, stream.ConsumerLogin, 64, login.Handle, login.PutOff)
	w.run(js, e, stream.Renewals, stream.ConsumerDeferred, 64, login.HandleDeferred, login.PutOffDeferred)
	w.run(js, e, stream.Requests, stream.ConsumerRequest, 64, request.Handle, nil)
}

// guard runs one worker's guard, and completes the provider by it and the budget of calls.
func (w *world) guard(js jetstream.JetStream, e *stream.Engine, settings string) func(refresh.Provider) refresh.Provider {
	w.t.Helper()
	bucket, err := js.KeyValue(w.t.Context(), stream.BucketProviders)
	w.must(err)
	g, err := guard.New(guard.Config{
		Provider: provider, Settings: settings, Concurrency: w.topology.Providers[0].Concurrency, Rules: w.rules, Bucket: bucket, Brake: e,
		Wake: stream.Waker{Store: w.store, Engine: e}.Wake, Source: "/renewd", Now: e.Now, Logger: w.logger,
	})
	w.must(err)
	w.workers = append(w.workers, w.background(g.Run))
	return func(p refresh.Provider) refresh.Provider {
		p.Guard = g
		if b := guard.NewBudget(guard.BudgetConfig{Provider: provider, Rate: w.rate, Bucket: bucket, Now: e.Now}); b != nil {
			p.Limiter = b
		}
		return p
	}
}

func (w *world) client(conns int) *idp.Provider {
	w.t.Helper()
	p, err := idp.New(idp.Config{ID: provider, BaseURL: w.url, TokenURL: w.tokenURL, ClientID: "renewd-test", ClientSecret: grant.NewSecret(w.secret), AllowHTTPLoopback: true, MaxConns: conns}, idp.Telemetry{Tracers: w.tracers, Meters: w.meters})
	w.must(err)
	return p
}

func (w *world) open(jwe string) (login.Opened, error) {
	l, err := w.keys.OpenLogin(jwe)
	return login.Opened{
		Provider: l.Provider, User: l.User, SealedAt: l.SealedAt, Access: grant.NewSecret(l.Access.Reveal()), Refresh: grant.NewSecret(l.Refresh.Reveal()),
		ExpiresAt: l.ExpiresAt, ExpiresIn: l.ExpiresIn,
	}, err
}

func (w *world) run(
	js jetstream.JetStream, e *stream.Engine, on, durable string, slots int, h consumers.Handler,
	putOff func(context.Context, *consumers.Message, error) error,
) {
	w.t.Helper()
	r, err := consumers.NewRunner(consumers.Config{
		JetStream: js, Stream: on, Durable: durable, Handler: h, PutOff: putOff, Slots: slots, Logger: w.logger, Tracer: w.tracers.Tracer("test"), Meter: w.meters.Meter("test"),
		Rejected: func(ctx context.Context, m *consumers.Message, reason error) error {
			return e.Publish(ctx, consumers.Rejected(schema.Subjects{}, m, reason, "/renewd", time.Now()))
		},
	})
	w.must(err)
	w.workers = append(w.workers, w.background(r.Run))
}

// follow collects all outcomes until the test ends, or stop is called.
func (w *world) follow() (stop func()) {
	w.t.Helper()
	nc := w.connect().Conn()
	return w.background(func(ctx context.Context) error {
		return consumers.Subscribe(ctx, nc, consumers.Subscription{StartAll: true}, func(_ context.Context, e schema.Event) error {
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

// heard are the outcomes so far, by user: others may come while they are looked at.
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
func (w *world) await(what string, patience time.Duration, ok func(outcomes map[string][]schema.Event) bool) {
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
			w.t.Fatalf("%s: not within %v; %d outcomes of %d users; provider %+v", what, patience, n, users, w.provider.Stats())
		}
	}
}

func user(n int) string { return fmt.Sprintf("user-%05d", n) }

// login signs a user in at the provider and tells renewd, as an app would.
func (w *world) login(p *publishers.Publisher, name string) publishers.Receipt {
	w.t.Helper()
	t := w.provider.Login(name)
	r, err := p.Login(w.t.Context(), provider, name, publishers.Tokens{
		AccessToken: t.Access, RefreshToken: t.Refresh, ExpiresIn: time.Duration(t.ExpiresIn) * time.Second,
	})
	w.must(err)
	return r
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
