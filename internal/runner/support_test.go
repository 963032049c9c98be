package runner_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/runner"
)

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
	if _, err := b.js.CreateStream(ctx, jetstream.StreamConfig{
		Name:      "WORK",
		Subjects:  []string{"work.>"},
		Retention: jetstream.WorkQueuePolicy,
	}); err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(ctx, "WORK", jetstream.ConsumerConfig{
		Durable:       "worker",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		FilterSubject: "work.>",
		MaxAckPending: 5000,
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
func (b *bench) config(h runner.Handler) runner.Config {
	return runner.Config{
		JetStream: b.js,
		Stream:    "WORK",
		Durable:   "worker",
		Template:  "work",
		Handler:   h,
	}
}

// run starts a runner and returns how to stop it; stop waits for the end.
func (b *bench) run(c runner.Config) (stop func()) {
	b.t.Helper()
	r, err := runner.New(c)
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

// empty waits until all messages are acknowledged.
func (b *bench) empty() {
	b.t.Helper()
	eventually(b.t, "the stream is empty", func() bool {
		s, err := b.js.Stream(b.t.Context(), "WORK")
		return err == nil && s.CachedInfo().State.Msgs == 0
	})
}
