package consumers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/schema"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// start runs a NATS server with JetStream for the test; it listens only if asked to.
func start(t testing.TB, listen bool) *server.Server {
	t.Helper()
	return startWith(t, &server.Options{DontListen: !listen, Host: "127.0.0.1", Port: server.RANDOM_PORT})
}

func startWith(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o.JetStream, o.StoreDir, o.NoLog, o.NoSigs = true, t.TempDir(), true, true
	o.DontListen = o.DontListen || o.Port == 0
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("server not ready")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

func connect(t testing.TB, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func stream(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// bench is a work queue with one durable, and what runs on it.
type bench struct {
	t      testing.TB
	server *server.Server
	nc     *nats.Conn
	js     jetstream.JetStream
}

func newBench(t testing.TB, ackWait time.Duration) *bench {
	t.Helper()
	s := start(t, false)
	nc := connect(t, s)
	b := &bench{t, s, nc, stream(t, nc)}
	b.create(ackWait)
	return b
}

func (b *bench) create(ackWait time.Duration) {
	b.t.Helper()
	ctx := b.t.Context()
	if _, err := b.js.CreateStream(ctx, jetstream.StreamConfig{Name: "WORK", Subjects: []string{"work.>"}, Retention: jetstream.WorkQueuePolicy}); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(ctx, "WORK", jetstream.ConsumerConfig{
		Durable: "worker", AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, FilterSubject: "work.>", MaxAckPending: 5000,
	}); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) publish(subject, body string) {
	b.t.Helper()
	if _, err := b.js.Publish(b.t.Context(), subject, []byte(body)); err != nil {
		b.t.Fatal(err)
	}
}

// config is of a runner on the bench.
func (b *bench) config(h consumers.Handler) consumers.Config {
	return consumers.Config{JetStream: b.js, Stream: "WORK", Durable: "worker", Template: "work", Handler: h}
}

// run starts a runner and returns how to stop it; stop waits for the end.
func (b *bench) run(c consumers.Config) (stop func()) {
	b.t.Helper()
	r, err := consumers.NewRunner(c)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := receive(b.t, ended); err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	b.t.Cleanup(stop)
	return stop
}

// empty waits until all messages are settled.
func (b *bench) empty() {
	b.t.Helper()
	eventually(b.t, "the stream is empty", func() bool {
		s, err := b.js.Stream(b.t.Context(), "WORK")
		return err == nil && s.CachedInfo().State.Msgs == 0
	})
}

func receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// logs collects what is logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// proxy is a TCP wire that can be cut and mended.
type proxy struct {
	net.Listener
	target string
	mu     sync.Mutex
	dead   bool
	conns  []net.Conn
	wg     sync.WaitGroup
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: l, target: target}
	p.wg.Go(p.serve)
	t.Cleanup(func() { l.Close(); p.hangUp(); p.wg.Wait() })
	return p
}

func (p *proxy) serve() {
	for {
		a, err := p.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue
		}
		b, err := net.Dial("tcp", p.target)
		if err != nil {
			a.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, a, b)
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(a, b) })
		p.wg.Go(func() { p.copy(b, a) })
	}
}

// copy passes bytes on; while the wire is dead they vanish, as behind a router that dropped its
// table.
func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		dead := p.dead
		p.mu.Unlock()
		if !dead {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
}

func (p *proxy) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
}

// hangUp closes all connections; new ones may be made.
func (p *proxy) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = false
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// through connects over the proxy.
func (p *proxy) through(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(p.Addr().String(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// outcomes makes the OUTCOMES stream.
func outcomes(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js := stream(t, nc)
	eventually(t, "OUTCOMES is made", func() bool { // a server may still be at removing one that was deleted
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OUTCOMES", Subjects: []string{
			"user.synced.>", "user.reauth_required.>", "user.refresh_failed.>", "user.forgotten.>", "message.rejected.>", "provider.*.*", "operator.acted",
		}})
		return err == nil
	})
	return js
}

// say publishes an outcome.
func say(t testing.TB, js jetstream.JetStream, id string, of schema.Type, user string, data any) {
	t.Helper()
	raw, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	e := schema.Event{ID: id, Source: "/renewd", Type: of, Provider: "propelauth", User: user, Time: time.Now(), Data: raw}
	h, body := schema.Encode(e)
	msg := &nats.Msg{Subject: schema.Subjects{}.Of(e.Address()), Header: nats.Header(h), Data: body}
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}
