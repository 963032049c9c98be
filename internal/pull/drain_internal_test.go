package pull

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A message that the server sent before it knew of the stop is found by Drain, not lost for an
// AckWait.
func TestDrainFindsWhatIsUnderWay(t *testing.T) {
	s, err := server.NewServer(&server.Options{
		JetStream:  true,
		StoreDir:   t.TempDir(),
		DontListen: true,
		NoLog:      true,
		NoSigs:     true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	nc, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{
		Name:     "WORK",
		Subjects: []string{"work"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateConsumer(ctx, "WORK", jetstream.ConsumerConfig{
		Durable:   "worker",
		AckPolicy: jetstream.AckExplicitPolicy,
	}); err != nil {
		t.Fatal(err)
	}
	p, err := New(js, "WORK", "worker", 300*time.Millisecond, 10)
	if err != nil {
		t.Fatal(err)
	}
	stopped, stop := context.WithCancel(ctx)
	stop()
	if _, err := p.Pull(stopped, 10, func(*nats.Msg) {
		t.Error("a message before there was one")
	}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "work", []byte("x")); err != nil {
		t.Fatal(err)
	}
	found := ""
	if got := p.Drain(10, func(m *nats.Msg) { found = string(m.Data) }); got != 1 || found != "x" {
		t.Errorf("%d found: %q", got, found)
	}
}
