// Package streams is shared by the tests of topology, stream and reconcile. It has a server with
// renewd's streams, an engine, one user, and short ways to read the messages waiting there.
//
// The package never ships: only tests import it. Each call starts servers and connections for its
// test alone, and all end with the test.
package streams

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Alice is the grant of most tests. Her id needs escaping.
var Alice = grant.Key{Provider: "propelauth", User: "alice@example.com"}

// Start runs an embedded server with this configuration until the test ends, by default in a folder
// of the test, and returns a connection to it.
func Start(t testing.TB, c natsd.Config) jetstream.JetStream {
	t.Helper()
	if c.StoreDir == "" {
		c.StoreDir = t.TempDir()
	}
	s, err := natsd.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return Connect(t, s.Connect)
}

// Connect dials a server; the connection is closed when the test ends.
func Connect(t testing.TB, dial func(...nats.Option) (*nats.Conn, error)) jetstream.JetStream {
	t.Helper()
	nc, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(time.Minute)) // machines are busy
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Wanted is the topology most tests want on their server, under a prefix or without.
func Wanted(t testing.TB, prefix string) topology.Topology {
	t.Helper()
	subjects, err := schema.NewSubjects(prefix)
	if err != nil {
		t.Fatal(err)
	}
	return topology.Topology{
		Subjects:  subjects,
		Providers: []topology.Provider{{ID: "propelauth", Concurrency: 4}},
		Grants:    true,
	}
}

// Ensure brings the server to the test's topology.
func Ensure(t testing.TB, js jetstream.JetStream, want topology.Topology) {
	t.Helper()
	if _, err := topology.Ensure(t.Context(), js, want); err != nil {
		t.Fatal(err)
	}
}

// Engine is an engine on this connection.
func Engine(t testing.TB, js jetstream.JetStream, c stream.Config) *stream.Engine {
	t.Helper()
	e, err := stream.NewEngine(js, c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// Fresh is a server with the whole topology, and an engine.
func Fresh(t *testing.T) (jetstream.JetStream, *stream.Engine) {
	t.Helper()
	js := Start(t, natsd.Config{})
	Ensure(t, js, Wanted(t, ""))
	return js, Engine(t, js, stream.Config{})
}

// Next takes one message of a durable, or nil if no message comes within the patience.
func Next(
	t *testing.T, js jetstream.JetStream, name, durable string, patience time.Duration,
) jetstream.Msg {
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

// Renewal takes the next due renewal of Alice's provider. Without a renewal in a minute the test
// fails.
func Renewal(t *testing.T, js jetstream.JetStream) jetstream.Msg {
	t.Helper()
	m := Next(t, js, topology.Renewals, topology.ConsumerRenew(Alice.Provider), time.Minute)
	if m == nil {
		t.Fatal("no renewal came")
	}
	return m
}

// Ack acknowledges a message, and waits until the server confirms.
func Ack(t *testing.T, m jetstream.Msg) {
	t.Helper()
	if err := m.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Work is the work of a timer, with this id as its cause.
func Work(id string) grant.Work {
	return grant.Work{Cause: schema.Cause{ID: id, Type: schema.CauseTimer}}
}

// Messages counts a stream's messages.
func Messages(t *testing.T, js jetstream.JetStream, name string) uint64 {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

// Must ends the test on an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Park stores a parcel of the grant.
func Park(t *testing.T, e *stream.Engine, k grant.Key, p grant.Parcel) {
	t.Helper()
	_, err := e.Park(t.Context(), k, p)
	Must(t, err)
}

// Plain is a cipher for records without tokens.
type Plain struct{}

func (Plain) Seal(plaintext, _ []byte) ([]byte, error) { return plaintext, nil }
func (Plain) Open(sealed, _ []byte) ([]byte, error)    { return sealed, nil }

// Command is the work of a user.refresh_due with this id.
func Command(id string) grant.Work {
	return grant.Work{Cause: schema.Cause{ID: id, Type: schema.UserRefreshDue, Source: "/billing"}}
}

// LoginOf is the address of a user's login, from a sender.
func LoginOf(k grant.Key) schema.Address {
	return schema.Address{
		Type:     schema.UserLogin,
		Provider: k.Provider,
		User:     k.User,
		Sender:   "shop",
	}
}

// Outcome is an event of this type about Alice.
func Outcome(id string, of schema.Type) schema.Event {
	return schema.Event{
		ID:       id,
		Source:   "/renewd",
		Type:     of,
		Provider: Alice.Provider,
		User:     Alice.User,
		Time:     time.Now().UTC(),
		Data:     []byte(`{}`),
	}
}

func collect(t *testing.T, reader *sdk.ManualReader) map[string]int64 {
	t.Helper()
	var rm metricdata.ResourceMetrics
	Must(t, reader.Collect(context.Background(), &rm))
	sums := map[string]int64{}
	for _, scope := range rm.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					sums[m.Name] += p.Value
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					sums[m.Name] += p.Value
				}
			}
		}
	}
	return sums
}

// Total sums the data points of one counter or gauge.
func Total(t *testing.T, reader *sdk.ManualReader, name string) int64 {
	t.Helper()
	return collect(t, reader)[name]
}

// Names lists a reader's metrics and their values.
func Names(t *testing.T, reader *sdk.ManualReader) string {
	t.Helper()
	return fmt.Sprint(collect(t, reader))
}
