package runner_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/testkit/link"
)

// beats passes on each sign of life that reaches the server.
func (b *bench) beats() <-chan *nats.Msg {
	b.t.Helper()
	all := make(chan *nats.Msg, 1000)
	sub, err := b.nc.ChanSubscribe("$JS.ACK.>", all)
	if err != nil {
		b.t.Fatal(err)
	}
	out := make(chan *nats.Msg, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range all {
			if string(m.Data) == "+WPI" {
				out <- m
			}
		}
	}()
	b.t.Cleanup(func() { sub.Unsubscribe(); close(all); <-done })
	return out
}

func TestFirstActIsABeat(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	beats := b.beats()
	b.run(b.config(func(ctx context.Context, m *runner.Message) error {
		receive(t, beats)
		return nil
	}))
	b.publish("work.u17", "")
	b.empty()
}

func TestBeatsKeepASlowMessage(t *testing.T) {
	t.Parallel()
	b := newBench(t, time.Second)
	beats := b.beats()
	deliveries := make(chan uint64, 10)
	var held atomic.Bool
	var hooks atomic.Int32
	b.run(b.config(func(ctx context.Context, m *runner.Message) error {
		deliveries <- m.Deliveries
		m.KeepAlive(func(context.Context) error { hooks.Add(1); return nil })
		for range 8 { // the first, and then one each third of a second
			receive(t, beats)
		}
		held.Store(m.Held() && ctx.Err() == nil)
		return nil
	}))
	b.publish("work.u17", "")
	b.empty()
	if receive(t, deliveries); len(deliveries) > 0 {
		t.Error("delivered again while in hand")
	}
	if !held.Load() {
		t.Error("lease lost although beats went on")
	}
	if hooks.Load() < 6 {
		t.Errorf("hook ran %d times in 7 beats", hooks.Load())
	}
}

// A connection that swallows everything: heartbeats are sent, and no heartbeat is answered. Another
// worker takes over.
func TestLeaseIsLostOnADeadConnection(t *testing.T) {
	t.Parallel()
	s := start(t, true)
	near := connect(t, s)
	b := &bench{t, s, near, stream(t, near)}
	b.create(time.Second)
	wire := link.For(t, s.Addr().String())
	far := through(t, wire)

	lost, first := make(chan error, 1), make(chan *runner.Message, 1)
	var logged logs
	c := b.config(func(ctx context.Context, m *runner.Message) error {
		first <- m
		<-ctx.Done()
		lost <- context.Cause(ctx)
		return ctx.Err()
	})
	c.JetStream, c.Logger = stream(t, far), logged.Logger()
	b.run(c)
	b.publish("work.u17", "")
	m := receive(t, first)
	if !m.Held() {
		t.Error("not held at first")
	}
	if err := wire.Set(link.Hanging); err != nil {
		t.Fatal(err)
	}
	taken := make(chan uint64, 10)
	b.run(b.config(func(_ context.Context, m *runner.Message) error {
		taken <- m.Deliveries
		return nil
	}))
	if err := receive(t, lost); !errors.Is(err, runner.ErrLeaseLost) {
		t.Errorf("cause %v", err)
	}
	if m.Held() {
		t.Error("held without an answer to any beat")
	}
	if got := receive(t, taken); got != 2 {
		t.Errorf("taken over at delivery %d", got)
	}
	eventually(t, "the first worker leaves it alone", func() bool {
		return logged.Has("left to another worker")
	})
	b.empty()
	wire.HangUp()

	b.publish("work.u18", "") // and the first worker is back, or the second takes it
	b.empty()
}

func TestLeaseIsLostWithItsHook(t *testing.T) {
	t.Parallel()
	b := newBench(t, time.Second)
	cause := make(chan error, 1)
	b.run(b.config(func(ctx context.Context, m *runner.Message) error {
		if m.Deliveries > 1 {
			return nil
		}
		m.KeepAlive(func(context.Context) error { return errFlaky })
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	}))
	b.publish("work.u17", "")
	if err := receive(t, cause); !errors.Is(err, runner.ErrLeaseLost) {
		t.Errorf("cause %v", err)
	}
	b.empty()
}

func TestRunnerComesBackAfterACut(t *testing.T) {
	t.Parallel()
	s := start(t, true)
	near := connect(t, s)
	b := &bench{t, s, near, stream(t, near)}
	b.create(time.Second)
	wire := link.For(t, s.Addr().String())
	seen := make(chan string, 10)
	c := b.config(func(_ context.Context, m *runner.Message) error {
		seen <- m.Subject
		return nil
	})
	c.JetStream = stream(t, through(t, wire))
	b.run(c)
	for _, subject := range []string{"work.u17", "work.u18", "work.u19"} {
		b.publish(subject, "")
		if got := receive(t, seen); got != subject {
			t.Errorf("got %s, want %s", got, subject)
		}
		b.empty()
		wire.HangUp()
	}
}
