package sink_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// stuck is a target whose deliveries of one user begin and do not end before they are cut off, or
// let go.
type stuck struct {
	receiver
	user  string
	began chan struct{}
	let   chan struct{} // closed: they end well
	cut   chan struct{} // has one value for each that was cut off
}

func newStuck(user string) *stuck {
	return &stuck{user: user, began: make(chan struct{}, 100), let: make(chan struct{}),
		cut: make(chan struct{}, 100)}
}

func (s *stuck) Deliver(ctx context.Context, e schema.Event) error {
	if e.User == s.user {
		s.began <- struct{}{}
		select {
		case <-s.let:
		case <-ctx.Done():
			s.cut <- struct{}{}
			return context.Cause(ctx)
		}
	}
	return s.receiver.Deliver(ctx, e)
}

// leased is until when the sink's lease lasts.
func (w *world) leased() time.Time {
	w.t.Helper()
	kv, err := w.js.KeyValue(w.t.Context(), topology.BucketSinks)
	if err != nil {
		w.t.Fatal(err)
	}
	e, err := kv.Get(w.t.Context(), "lease.crm")
	if err != nil {
		w.t.Fatal(err)
	}
	var lease struct{ Until time.Time }
	if err := json.Unmarshal(e.Value(), &lease); err != nil {
		w.t.Fatal(err)
	}
	return lease.Until
}

// short has a sink's lease end soon after its process vanished, and what that process had in hand
// come again soon after that.
func (w *world) short(c sink.Config) sink.Config {
	w.t.Helper()
	c.Lease, c.Durable.AckWait = 2*time.Second, 2*time.Second
	if _, err := w.js.UpdateConsumer(w.t.Context(), c.Stream, c.Durable); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// A process that was told to stop keeps the lease until its last delivery has ended, so that no
// other process runs the sink beside it.
func TestLeaseIsKeptWhileItDrains(t *testing.T) {
	w := newWorld(t)
	first, second := newStuck("alice"), &receiver{}
	c := w.short(w.config(first))
	c.Drain = time.Minute
	stop := w.run(c)
	w.say("alice", schema.UserSynced)
	testkit.Receive(t, first.began)
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	w.run(w.short(w.config(second)))
	w.say("bob", schema.UserSynced)
	for range 2 {
		until := w.leased()
		eventually(t, "the lease is extended", func() bool { return w.leased().After(until) })
	}
	if got := second.ids(""); len(got) > 0 {
		t.Errorf("another process delivered %v beside the one that was stopping", got)
	}
	close(first.let)
	testkit.Receive(t, stopped)
	eventually(t, "the second process", func() bool { return len(second.ids("bob")) == 1 })
}

// A delivery that goes elsewhere, as where a connection broke or another process had just lost the
// lease, comes again, and no later outcome of its user before it.
func TestDeliveryThatWentElsewhereComesFirst(t *testing.T) {
	w := newWorld(t)
	to := &receiver{}
	c := w.short(w.config(to))
	w.run(c)
	want := []string{w.say("alice", schema.UserSynced)}
	eventually(t, "the first", func() bool { return len(to.ids("")) == 1 })
	other, err := w.js.Consumer(t.Context(), c.Stream, c.Durable.Durable)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := other.Fetch(1, jetstream.FetchMaxWait(testkit.Patience))
	if err != nil {
		t.Fatal(err)
	}
	for taken := false; !taken; {
		select {
		case m := <-asked.Messages():
			taken = m != nil
		default:
			want = append(want, w.say("alice", schema.UserSynced))
		}
	}
	for range 5 {
		want = append(want, w.say("alice", schema.UserSynced))
	}
	eventually(t, "all", func() bool { return len(to.ids("")) >= len(want) })
	if got := to.ids(""); !slices.Equal(got, want) {
		t.Errorf("delivered were %v, want %v", got, want)
	}
}

// A process that has lost the lease cuts off what it delivers: another process may deliver by then.
func TestLostLeaseCutsDeliveriesOff(t *testing.T) {
	w := newWorld(t)
	to := newStuck("alice")
	c := w.config(to)
	c.Drain, c.Lease = time.Minute, 2*time.Second
	w.run(c)
	w.say("alice", schema.UserSynced)
	testkit.Receive(t, to.began)
	kv, err := w.js.KeyValue(t.Context(), topology.BucketSinks)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "lease.crm", []byte(`{"host":"other"}`)); err != nil {
		t.Fatal(err)
	}
	testkit.Receive(t, to.cut)
	close(to.let)
	eventually(t, "it goes on", func() bool { return len(to.ids("")) == 1 })
}

// A process that holds the lease is killed amid its deliveries: another takes over once the lease
// has ended. Nothing is lost, and each user's outcomes keep their order, those that waited too.
func TestAnotherProcessTakesOverFromAKilledOne(t *testing.T) {
	w := newWorld(t)
	refuses := func(e schema.Event) error {
		if e.User == "mallory" {
			return &sink.Fault{Blame: sink.Refused, Err: errors.New("no")}
		}
		return nil
	}
	first, second := newStuck("alice"), &receiver{}
	first.failing(refuses)
	c := w.short(w.config(first))
	c.Schedule = sink.Schedule()
	nc, err := w.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if c.JetStream, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	w.run(c)
	want := map[string][]string{}
	say := func() {
		for _, user := range []string{"mallory", "alice", "bob"} {
			want[user] = append(want[user], w.say(user, schema.UserSynced))
		}
	}
	for range 5 {
		say()
	}
	testkit.Receive(t, first.began)
	eventually(t, "mallory's wait", func() bool { return w.look().Waiting == 5 })
	nc.Close() // nothing that the process does reaches anything from here on
	say()
	c = w.short(w.config(second))
	w.run(c)
	eventually(t, "all of it", func() bool {
		return len(second.ids("alice")) == 6 && len(second.ids("mallory")) == 6 &&
			slices.Contains(second.ids("bob"), want["bob"][5])
	})
	for user, ids := range want {
		got := append(first.ids(user), second.ids(user)...)
		if got = slices.Compact(got); !slices.Equal(got, ids) {
			t.Errorf("%s's came as %v, want %v", user, got, ids)
		}
	}
}
