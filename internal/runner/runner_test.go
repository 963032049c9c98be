package runner_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

func TestVerdicts(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]func() error{
		"done":             func() error { return nil },
		"retry":            func() error { return runner.Retry(errFlaky, 10*time.Millisecond) },
		"retry at once":    func() error { return runner.Retry(nil, -time.Second) },
		"any other error":  func() error { return errFlaky },
		"panic":            func() error { panic("the body: s3cret") },
		"panic of runtime": func() error { var none []int; _ = none[len("one")]; return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, 5*time.Second)
			seen := make(chan uint64, 10)
			var logged logs
			c := b.config(func(_ context.Context, m *runner.Message) error {
				seen <- m.Deliveries
				if m.Deliveries > 1 {
					return nil
				}
				return first()
			})
			c.Logger = logged.Logger()
			b.run(c)
			b.publish("work.u17", "s3cret")
			for want := range uint64(2) {
				if want == 1 && name == "done" {
					break
				}
				if got := receive(t, seen); got != want+1 {
					t.Fatalf("delivery %d, want %d", got, want+1)
				}
			}
			b.empty()
			if logged.Has("s3cret") {
				t.Error("the body was logged")
			}
			if strings.HasPrefix(name, "panic") && !logged.Has("runner_test.go") {
				t.Error("a panic was logged without its stack")
			}
		})
	}
}

func TestRetryIsCutToMaxDelay(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	seen := make(chan uint64, 10)
	var logged logs
	c := b.config(func(_ context.Context, m *runner.Message) error {
		seen <- m.Deliveries
		if m.Deliveries > 1 {
			return nil
		}
		return runner.Retry(errFlaky, time.Hour)
	})
	c.Logger, c.MaxDelay = logged.Logger(), 10*time.Millisecond
	b.run(c)
	b.publish("work.u17", "")
	receive(t, seen)
	receive(t, seen)
	if !logged.Has("retry cut short") {
		t.Error("cut in silence")
	}
}

func TestRejectedIsRecordedBeforeItGoes(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	terms, err := b.nc.SubscribeSync("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.WORK.worker")
	if err != nil {
		t.Fatal(err)
	}
	bad := &schema.Malformed{Reason: schema.RejectData, Field: "want", Message: "no such want"}
	records := make(chan error, 10)
	var tries atomic.Int32
	c := b.config(func(context.Context, *runner.Message) error { return runner.Reject(bad) })
	c.Rejected = func(_ context.Context, m *runner.Message, reason error) error {
		records <- reason
		if tries.Add(1) == 1 {
			return errFlaky
		}
		return nil
	}
	b.run(c)
	b.publish("work.u17", "")
	for range 2 {
		if got := receive(t, records); !errors.Is(got, error(bad)) {
			t.Fatalf("recorded %v", got)
		}
	}
	b.empty()
	msg, err := terms.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(msg.Data), `"reason":"malformed_data: want"`) {
		t.Errorf("advisory %s", msg.Data)
	}
}

func TestMessageSaysWhereItComesFrom(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	seen := make(chan *runner.Message, 1)
	b.run(b.config(func(_ context.Context, m *runner.Message) error { seen <- m; return nil }))
	msg := &nats.Msg{Subject: "work.u17", Data: []byte("x"), Header: nats.Header{"Ce-Id": {"e1"}}}
	ack, err := b.js.PublishMsg(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	m := receive(t, seen)
	if m.Subject != "work.u17" || string(m.Data) != "x" || m.Header.Get("ce-id") != "e1" ||
		m.Stream != "WORK" || m.Sequence != ack.Sequence ||
		m.Deliveries != 1 || time.Since(m.Time).Abs() > time.Minute {
		t.Errorf("%+v", m)
	}
	if byHand := new(runner.Message); !byHand.Held() {
		t.Error("a message made by hand is not held")
	}
}

// A publisher can send what looks like the server's own word on a pull request.
func TestStatusHeadersOfPublishersAreNoStatus(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	seen := make(chan string, 10)
	b.run(b.config(func(_ context.Context, m *runner.Message) error {
		seen <- m.Header.Get("Status")
		return nil
	}))
	codes := []string{"100", "404", "408", "409", "503"}
	for _, code := range codes {
		if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{
			Subject: "work.u17",
			Header:  nats.Header{"Status": {code}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]bool{}
	for range codes {
		got[receive(t, seen)] = true
	}
	if len(got) != len(codes) {
		t.Errorf("handled %v", got)
	}
	b.empty()
}

func TestNeverMoreInHandThanSlots(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	const slots, messages = 4, 200
	for range messages {
		b.publish("work.u17", "")
	}
	var now, most, over atomic.Int32
	var all sync.WaitGroup
	all.Add(messages)
	c := b.config(func(ctx context.Context, m *runner.Message) error {
		defer all.Done()
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		info, err := b.js.Consumer(ctx, "WORK", "worker")
		if err == nil && info.CachedInfo().NumAckPending > slots {
			over.Add(1)
		}
		return nil
	})
	c.Slots = slots
	b.run(c)
	all.Wait()
	b.empty()
	if over.Load() > 0 {
		t.Errorf("%d times more was fetched than there are slots", over.Load())
	}
	if most.Load() < 2 {
		t.Error("slots did not work at the same time")
	}
}

func TestRunWaitsForItsStream(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	nc := connect(t, s)
	b := &bench{t, s, nc, stream(t, nc)}
	var logged logs
	seen := make(chan string, 10)
	c := b.config(func(_ context.Context, m *runner.Message) error {
		seen <- m.Subject
		return nil
	})
	c.Logger = logged.Logger()
	b.run(c)
	eventually(t, "the missing stream is reported", func() bool {
		return logged.Has("renewd streams apply")
	})
	b.create(30 * time.Second)
	b.publish("work.u17", "")
	receive(t, seen)
	b.empty() // or the acknowledgement would go to a consumer that is gone

	if err := b.js.DeleteConsumer(t.Context(), "WORK", "worker"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(t.Context(), "WORK", jetstream.ConsumerConfig{
		Durable:   "worker",
		AckPolicy: jetstream.AckExplicitPolicy,
	}); err != nil {
		t.Fatal(err)
	}
	b.publish("work.u18", "")
	if got := receive(t, seen); got != "work.u18" {
		t.Errorf("got %s", got)
	}
}

func TestRunRefusesAnUnfitConsumer(t *testing.T) {
	t.Parallel()
	s := start(t, false)
	nc := connect(t, s)
	b := &bench{t, s, nc, stream(t, nc)}
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name:     "WORK",
		Subjects: []string{"work.>"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateConsumer(t.Context(), "WORK", jetstream.ConsumerConfig{
		Durable: "worker", AckPolicy: jetstream.AckExplicitPolicy, MaxDeliver: 5,
	}); err != nil {
		t.Fatal(err)
	}
	var logged logs
	c := b.config(func(context.Context, *runner.Message) error { return nil })
	c.Logger = logged.Logger()
	b.run(c)
	eventually(t, "the consumer is refused", func() bool { return logged.Has("unfit consumer") })
}

func TestRunEndsWithItsConnection(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	r, err := runner.New(b.config(func(context.Context, *runner.Message) error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context()) }()
	eventually(t, "it pulls", func() bool { return waiting(t, b) > 0 })
	b.nc.Close()
	if err := receive(t, ended); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("Run: %v", err)
	}
}

func waiting(t *testing.T, b *bench) int {
	c, err := b.js.Consumer(t.Context(), "WORK", "worker")
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo().NumWaiting
}

func TestDrain(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	began, finish := make(chan string, 10), make(chan struct{})
	c := b.config(func(ctx context.Context, m *runner.Message) error {
		began <- m.Subject
		select {
		case <-finish:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	stop := b.run(c)
	b.publish("work.u17", "")
	receive(t, began)
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	eventually(t, "it pulls no more", func() bool { return waiting(t, b) == 0 })
	b.publish("work.u18", "")
	close(finish)
	receive(t, stopped)
	s, err := b.js.Stream(t.Context(), "WORK")
	if err != nil {
		t.Fatal(err)
	}
	if n := s.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages left, want the one that came too late", n)
	}
	b.run(c)
	if got := receive(t, began); got != "work.u18" {
		t.Errorf("then came %s", got)
	}
}

func TestDrainIsOverSomeTime(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	began, cause := make(chan struct{}, 10), make(chan error, 10)
	c := b.config(func(ctx context.Context, m *runner.Message) error {
		if m.Deliveries > 1 {
			return nil
		}
		began <- struct{}{}
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	})
	c.Drain = time.Millisecond
	stop := b.run(c)
	b.publish("work.u17", "")
	receive(t, began)
	stop()
	if err := receive(t, cause); !errors.Is(err, runner.ErrShutdown) {
		t.Errorf("cause: %v", err)
	}
	b.run(c)
	b.empty()
}

// What the server hands out after the stop goes back at once: long before its AckWait is over.
func TestWhatIsNotBegunGoesBack(t *testing.T) {
	t.Parallel()
	b := newBench(t, 10*time.Minute) // each request then stays open for a second
	handled := make(chan string, 10)
	named := func(name string) runner.Config {
		return b.config(func(_ context.Context, m *runner.Message) error {
			handled <- name
			return nil
		})
	}
	r, err := runner.New(named("first"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	eventually(t, "it pulls", func() bool { return waiting(t, b) > 0 })
	cancel()
	b.publish("work.u17", "")
	if err := receive(t, ended); err != nil {
		t.Fatal(err)
	}
	b.run(named("second"))
	if got := receive(t, handled); got != "second" {
		t.Errorf("handled by %s", got)
	}
}

func TestConfigNamesTheField(t *testing.T) {
	t.Parallel()
	b := newBench(t, time.Second)
	good := b.config(func(context.Context, *runner.Message) error { return nil })
	for field, spoil := range map[string]func(*runner.Config){
		"JetStream": func(c *runner.Config) { c.JetStream = nil },
		"Stream":    func(c *runner.Config) { c.Stream = "" },
		"Durable":   func(c *runner.Config) { c.Durable = "" },
		"Handler":   func(c *runner.Config) { c.Handler = nil },
		"Slots":     func(c *runner.Config) { c.Slots = -1 },
		"Drain":     func(c *runner.Config) { c.Drain = -1 },
	} {
		c := good
		spoil(&c)
		if _, err := runner.New(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
