package stream_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// alice is the grant of most tests; her id needs escaping.
var alice = grant.Key{Provider: "propelauth", User: "alice@example.com"}

func start(t *testing.T, c natsd.Config) jetstream.JetStream {
	t.Helper()
	if c.StoreDir == "" {
		c.StoreDir = t.TempDir()
	}
	s, err := natsd.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return connect(t, s.Connect)
}

func connect(t *testing.T, dial func(...nats.Option) (*nats.Conn, error)) jetstream.JetStream {
	t.Helper()
	nc, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func topology(t *testing.T, prefix string) stream.Topology {
	t.Helper()
	subjects, err := schema.NewSubjects(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return stream.Topology{Subjects: subjects, Providers: []stream.Provider{{ID: "propelauth", Concurrency: 4}}, Grants: true}
}

func ensure(t *testing.T, js jetstream.JetStream, want stream.Topology) {
	t.Helper()
	if _, err := stream.Ensure(t.Context(), js, want); err != nil {
		t.Fatal(err)
	}
}

func engine(t *testing.T, js jetstream.JetStream, c stream.Config) *stream.Engine {
	t.Helper()
	e, err := stream.NewEngine(js, c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// fresh is a server with everything on it, and an engine.
func fresh(t *testing.T) (jetstream.JetStream, *stream.Engine) {
	t.Helper()
	js := start(t, natsd.Config{})
	ensure(t, js, topology(t, ""))
	return js, engine(t, js, stream.Config{})
}

// next takes one message of a durable, nil if none comes within the patience.
func next(t *testing.T, js jetstream.JetStream, name, durable string, patience time.Duration) jetstream.Msg {
	t.Helper()
	c, err := js.Consumer(t.Context(), name, durable)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := c.Fetch(1, jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	m := <-batch.Messages()
	if err := batch.Error(); err != nil {
		t.Fatal(err)
	}
	return m
}

func renewal(t *testing.T, js jetstream.JetStream) jetstream.Msg {
	t.Helper()
	m := next(t, js, stream.Renewals, stream.ConsumerRenew(alice.Provider), 10*time.Second)
	if m == nil {
		t.Fatal("no renewal came")
	}
	return m
}

func ack(t *testing.T, m jetstream.Msg) {
	t.Helper()
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func work(id string) grant.Work {
	return grant.Work{Cause: schema.Cause{ID: id, Type: schema.CauseTimer}}
}

// messages counts what a stream holds.
func messages(t *testing.T, js jetstream.JetStream, name string) uint64 {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// eventually polls until ok says yes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if ok() {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func park(t *testing.T, e *stream.Engine, k grant.Key, p grant.Parcel) {
	t.Helper()
	_, err := e.Park(t.Context(), k, p)
	must(t, err)
}

// connectRaw publishes with a header block as it is, which no client would write.
func connectRaw(t *testing.T, js jetstream.JetStream) func(subject, header string) {
	t.Helper()
	nc := js.Conn()
	return func(subject, header string) {
		t.Helper()
		var conn net.Conn
		var err error
		if in := nc.Opts.InProcessServer; in != nil {
			conn, err = in.InProcessConn()
		}
		must(t, err)
		defer conn.Close()
		lines := bufio.NewScanner(conn)
		lines.Scan() // INFO
		_, err = fmt.Fprintf(conn, "CONNECT {\"headers\":true,\"no_responders\":true,\"verbose\":false}\r\nHPUB %s %d %d\r\n%s\r\nPING\r\n", subject, len(header), len(header), header)
		must(t, err)
		for lines.Scan() {
			if lines.Text() == "PONG" {
				return
			}
			if strings.HasPrefix(lines.Text(), "-ERR") {
				t.Fatal(lines.Text())
			}
		}
		t.Fatal("no answer")
	}
}

// plain is a cipher for records without tokens.
type plain struct{}

func (plain) Seal(plaintext, _ []byte) ([]byte, error) { return plaintext, nil }
func (plain) Open(sealed, _ []byte) ([]byte, error)    { return sealed, nil }
