package runner_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/runner"
)

// narrow lets only n messages be handled at a time.
func (b *bench) narrow(n int) {
	b.t.Helper()
	c, err := b.js.Consumer(b.t.Context(), "WORK", "worker")
	if err != nil {
		b.t.Fatal(err)
	}
	config := c.CachedInfo().Config
	config.MaxAckPending = n
	if _, err := b.js.UpdateConsumer(b.t.Context(), "WORK", config); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) info() *jetstream.ConsumerInfo {
	b.t.Helper()
	c, err := b.js.Consumer(b.t.Context(), "WORK", "worker")
	if err != nil {
		b.t.Fatal(err)
	}
	return c.CachedInfo()
}

// No message holds a place by endless retries. A message that fails alone, by an error, a panic or
// a rejection that cannot be recorded, leaves after five deliveries, and the rest are served.
func TestPoisonLeavesItsPlace(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	b.narrow(3)
	for _, subject := range []string{"work.error", "work.panic", "work.reject"} {
		b.publish(subject, "poison")
	}
	var mu sync.Mutex
	most, put := map[string]uint64{}, map[string]error{}
	served := make(chan string, 100)
	c := b.config(func(_ context.Context, m *runner.Message) error {
		mu.Lock()
		most[m.Subject] = max(most[m.Subject], m.Deliveries)
		mu.Unlock()
		switch m.Subject {
		case "work.error":
			return runner.Retry(errFlaky, time.Hour)
		case "work.panic":
			panic("canary")
		case "work.reject":
			return runner.Reject(nil)
		}
		served <- m.Subject
		return nil
	})
	c.Slots, c.MaxDelay = 3, time.Millisecond
	c.Rejected = func(context.Context, *runner.Message, error) error { panic("canary") }
	c.PutOff = func(_ context.Context, m *runner.Message, err error) error {
		mu.Lock()
		defer mu.Unlock()
		put[m.Subject] = err
		return nil
	}
	b.run(c)
	eventually(t, "nothing is in hand", func() bool {
		return b.info().NumAckPending == 0 && b.info().NumPending == 0
	})
	b.publish("work.good", "x")
	if got := receive(t, served); got != "work.good" {
		t.Errorf("served %s", got)
	}
	b.empty()
	mu.Lock()
	defer mu.Unlock()
	for _, subject := range []string{"work.error", "work.panic", "work.reject"} {
		if most[subject] != 5 || put[subject] == nil ||
			strings.Contains(put[subject].Error(), "canary") {
			t.Errorf("%s: %d deliveries, put off for %v", subject, most[subject], put[subject])
		}
	}
	if !errors.Is(put["work.error"], errFlaky) || len(put) != 3 {
		t.Errorf("put off: %v", put)
	}
}

// Work is never lost between the message and its timer: as long as the work cannot be stored the
// message comes again.
func TestWhatCannotBePutOffComesAgain(t *testing.T) {
	t.Parallel()
	b := newBench(t, 5*time.Second)
	var tries atomic.Int32
	c := b.config(func(_ context.Context, m *runner.Message) error {
		return runner.Retry(errFlaky, 0)
	})
	c.MaxDelay = time.Millisecond
	c.PutOff = func(ctx context.Context, m *runner.Message, _ error) error {
		if _, bounded := ctx.Deadline(); !bounded || !m.Exhausted() {
			t.Errorf("bounded %v, exhausted %v", bounded, m.Exhausted())
		}
		switch tries.Add(1) {
		case 1:
			return errFlaky
		case 2:
			panic("canary")
		}
		return nil
	}
	b.publish("work.u17", "x")
	b.run(c)
	b.empty()
	if tries.Load() != 3 {
		t.Errorf("put off %d times", tries.Load())
	}
}

// While a worker is not ready it takes nothing and leaves the work to others. It finishes what it
// is handling.
func TestNotReadyTakesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t, 10*time.Second)
	var unready atomic.Bool
	var logged logs
	begun, finish := make(chan string, 10), make(chan struct{})
	c := b.config(func(_ context.Context, m *runner.Message) error {
		begun <- m.Subject
		<-finish
		return nil
	})
	c.Slots, c.Logger = 2, logged.Logger()
	c.Ready = func() error {
		if unready.Load() {
			return errFlaky
		}
		return nil
	}
	b.publish("work.first", "x")
	stop := b.run(c)
	receive(t, begun)
	unready.Store(true)
	eventually(t, "it says that it is not ready", func() bool {
		return logged.Has(errFlaky.Error())
	})
	eventually(t, "no request is open", func() bool { return b.info().NumWaiting == 0 })
	b.publish("work.second", "x")
	close(finish)
	eventually(t, "what was in hand is finished", func() bool {
		i := b.info()
		return i.NumAckPending == 0 && i.NumPending == 1
	})
	if len(begun) > 0 || b.info().Delivered.Consumer != 1 {
		t.Errorf("taken all the same: %d delivered", b.info().Delivered.Consumer)
	}
	unready.Store(false)
	if got := receive(t, begun); got != "work.second" {
		t.Errorf("took %s", got)
	}
	b.empty()
	unready.Store(true)
	stop() // not held up by it
}
