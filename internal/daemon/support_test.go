package daemon

import (
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/topology"
)

func mustRing(t *testing.T, ring *seal.Keyring, err error) *seal.Keyring {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// natsServer is the address of a NATS server that ends with the test.
func natsServer(t *testing.T) string {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s.ClientURL()
}

// streams are renewd's, on a server of the test.
func streams(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(natsServer(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := topology.Ensure(t.Context(), js, topology.Topology{}); err != nil {
		t.Fatal(err)
	}
	return js
}
