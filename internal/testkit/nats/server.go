package nats

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/link"
)

// Start runs a NATS server with JetStream for the test. The server listens only if listen is set.
func Start(t testing.TB, listen bool) *server.Server {
	t.Helper()
	return StartWith(t, &server.Options{
		DontListen: !listen,
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
	})
}

// StartWith runs a NATS server with JetStream and these options for the test.
func StartWith(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o.JetStream, o.StoreDir, o.NoLog, o.NoSigs = true, t.TempDir(), true, true
	o.DontListen = o.DontListen || o.Port == 0
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(testkit.Patience) {
		t.Fatal("server not ready")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// Connect connects to a server in this process until the test ends.
func Connect(t testing.TB, s *server.Server) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Through connects over a link that may be cut, until the test ends.
func Through(t testing.TB, l *link.Link) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(l.Addr(), nats.MaxReconnects(-1),
		nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// JetStream is the JetStream context of a connection.
func JetStream(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}
