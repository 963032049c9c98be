package stream_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	testnats "github.com/renewd/renewd/internal/testkit/nats"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// freshOnThreeNodes is an engine on three servers, with streams that have a leader.
func freshOnThreeNodes(t *testing.T) (jetstream.JetStream, *stream.Engine) {
	t.Helper()
	servers := testnats.Cluster(t)
	js := connect(t, func(...nats.Option) (*nats.Conn, error) {
		return nats.Connect("", nats.InProcessServer(servers[0]))
	})
	want := wanted(t, "")
	want.Replicas = 3
	ensure(t, js, want)
	e := engine(t, js, stream.Config{})
	eventually(t, "RENEWALS has a leader", func() bool {
		_, err := e.HasTimer(t.Context(), alice)
		return err == nil
	})
	return js, e
}

// TestThreeNodes is the whole engine on three servers, also over the loss of the one that leads
// RENEWALS.
func TestThreeNodes(t *testing.T) {
	servers := testnats.Cluster(t)
	dial := func(s *server.Server) jetstream.JetStream {
		return connect(t, func(...nats.Option) (*nats.Conn, error) {
			return nats.Connect("", nats.InProcessServer(s))
		})
	}
	js := dial(servers[0])
	want := wanted(t, "")
	want.Replicas = 3
	ensure(t, js, want)
	if c, err := topology.Plan(t.Context(), js, want); err != nil || c.Pending() {
		t.Fatalf("second plan on a cluster: %v\n%s", err, c)
	}
	e := engine(t, js, stream.Config{})
	ctx := t.Context()
	must(t, e.SyncClock(ctx))
	for i := range 50 {
		k := grant.Key{Provider: alice.Provider, User: fmt.Sprint("u", i)}
		park(t, e, k, grant.Parcel{Version: int64(i)})
		if p, found, err := e.Parked(ctx, k); err != nil || !found || p.Version != int64(i) {
			t.Fatalf("read right after park: %+v, %v, %v", p, found, err)
		}
	}

	must(t, e.Arm(ctx, alice, time.Now().Add(2*time.Second), work("armed before")))
	s, err := js.Stream(ctx, topology.Renewals)
	must(t, err)
	leader := s.CachedInfo().Cluster.Leader
	for _, s := range servers {
		if s.Name() == leader {
			s.Shutdown()
			s.WaitForShutdown()
		} else {
			js = dial(s)
		}
	}
	e = engine(t, js, stream.Config{})
	var m jetstream.Msg
	eventually(t, "the timer fires under the new leader", func() bool {
		c, err := js.Consumer(ctx, topology.Renewals, topology.ConsumerRenew(alice.Provider))
		if err != nil {
			return false
		}
		m, err = c.Next(jetstream.FetchMaxWait(time.Second))
		return err == nil
	})
	if k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers())); err != nil ||
		k != alice || w.Cause.ID != "armed before" {
		t.Errorf("fired %v %+v %v", k, w, err)
	}
	ack(t, m)
	// A publish while a stream elects its leader waits for the leader.
	must(t, e.Wake(ctx, alice, work("after")))
}
