package webhook_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// One of a hundred endpoints hangs: the others get everything meanwhile, and when it answers again
// it gets everything too, each user's outcomes in their order.
func TestOneOfAHundredHangs(t *testing.T) {
	const endpoints, users, each = 100, 10, 4
	hangs, hanging := make(chan struct{}), atomic.Bool{}
	hanging.Store(true)
	var mu sync.Mutex
	got := map[string][]string{} // ids, by endpoint
	at := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/s0" && hanging.Load() {
			select {
			case <-hangs:
			case <-r.Context().Done():
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		key := r.URL.Path
		// At least once: one that the sink gave up waiting for may have come.
		if id := r.Header.Get("Webhook-Id"); !slices.Contains(got[key], id) {
			got[key] = append(got[key], id)
		}
	}))
	defer at.Close()
	js := streams.Start(t, natsd.Config{})
	want := streams.Wanted(t, "")
	for i := range endpoints {
		want.Sinks = append(want.Sinks, topology.Sink{Name: fmt.Sprint("s", i), InHand: 16})
	}
	streams.Ensure(t, js, want)
	engine := streams.Engine(t, js, stream.Config{})
	defer runSinks(t, js, engine, want, func(i int) (webhook.Config, sink.Config) {
		c := webhook.Config{
			URL: fmt.Sprint(at.URL, "/s", i), Secrets: []secret.Value{secret.New(newSecret)},
			AllowPrivate: true, AllowHTTP: true, MaxConns: 2, Timeout: time.Minute,
		}
		if i == 0 {
			c.Timeout = 2 * time.Second
		}
		return c, sink.Config{Concurrency: 2, Drain: 100 * time.Millisecond}
	})()
	var ids []string
	for n := range each {
		for u := range users {
			id := fmt.Sprintf("u%d-%d", u, n)
			ids = append(ids, id)
			err := engine.Publish(t.Context(), schema.Event{
				ID: id, Source: "/renewd", Type: schema.UserSynced, Provider: "propelauth",
				User: fmt.Sprint("u", u), Time: time.Now(), Data: []byte(`{}`),
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	complete := func(i int) bool {
		mu.Lock()
		defer mu.Unlock()
		return len(got[fmt.Sprint("/s", i)]) >= len(ids)
	}
	inTime(t, "what the others get", func() bool {
		for i := 1; i < endpoints; i++ {
			if !complete(i) {
				return false
			}
		}
		return true
	})
	hanging.Store(false)
	close(hangs)
	// The longer it hung, the longer until it is tried again, a minute at most.
	inTime(t, "what the endpoint that hung gets", func() bool { return complete(0) })
	mu.Lock()
	defer mu.Unlock()
	for u := range users {
		prefix, last := fmt.Sprintf("u%d-", u), ""
		for _, id := range got["/s0"] {
			if len(id) > len(prefix) && id[:len(prefix)] == prefix {
				if id < last {
					t.Errorf("%s came after %s", id, last)
				}
				last = id
			}
		}
	}
	for _, id := range ids {
		if !slices.Contains(got["/s0"], id) {
			t.Errorf("%s was lost", id)
		}
	}
}

// inTime is testkit.Eventually with more patience, for a hundred endpoints on a busy machine.
func inTime(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("not in time: ", what)
		}
	}
}

func durableOf(want topology.Topology, name string) jetstream.ConsumerConfig {
	for _, c := range want.Consumers() {
		if c.Config.Durable == topology.ConsumerSink(name) {
			return c.Config
		}
	}
	panic("no such sink: " + name)
}

// runSinks runs the sinks that are wanted, each with what of says of it. stop ends them.
func runSinks(
	t testing.TB, js jetstream.JetStream, engine *stream.Engine, want topology.Topology,
	of func(i int) (webhook.Config, sink.Config),
) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for i, wanted := range want.Sinks {
		to, c := of(i)
		target, err := webhook.New(to)
		if err != nil {
			t.Fatal(err)
		}
		c.Name, c.Target, c.JetStream, c.Stream = wanted.Name, target, js, topology.Outcomes
		c.Durable, c.Read = durableOf(want, wanted.Name), engine.OutcomeAt
		c.Rand = func() float64 { return 0 }
		c.Acted = func(context.Context, string) error { return nil }
		s, err := sink.New(c)
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return func() { cancel(); running.Wait() }
}
