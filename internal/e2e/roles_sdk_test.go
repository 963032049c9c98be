package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// outcomesOfOneUser makes renewd's streams and publishes one event as renewd does.
func outcomesOfOneUser(t *testing.T, n natsRoles) {
	t.Helper()
	js := must(jetstream.New(n.as(t, "renewd")))(t)
	must(stream.Ensure(t.Context(), js, stream.Topology{Providers: []stream.Provider{{ID: "acme"}}}))(t)
	engine := must(stream.NewEngine(js, stream.Config{}))(t)
	event := schema.Event{ID: "e1", Source: "/renewd", Type: schema.UserReauthRequired, Provider: "acme", User: "u1", Time: time.Now(), Data: []byte("{}")}
	if err := engine.Publish(t.Context(), event); err != nil {
		t.Fatal(err)
	}
}

func TestRoleSubscriberMaySubscribe(t *testing.T) {
	n := startNATSRoles(t)
	outcomesOfOneUser(t, n)
	for name, s := range map[string]consumers.Subscription{
		"durable":  {Durable: "billing", StartAll: true},
		"own":      {StartAll: true},
		"one type": {StartAll: true, Types: []schema.Type{schema.UserReauthRequired}},
		"one user": {StartAll: true, Provider: "acme", User: "u1"},
	} {
		nc := n.as(t, "subscriber")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		var got schema.Event
		err := consumers.Subscribe(ctx, nc, s, func(_ context.Context, e schema.Event) error {
			got = e
			cancel()
			return nil
		})
		if err != nil || got.ID != "e1" {
			t.Errorf("%s: got %q, %v; the server refused: %v", name, got.ID, err, nc.LastError())
		}
		cancel()
	}
}

func TestRoleSubscriberMayListenLive(t *testing.T) {
	n := startNATSRoles(t)
	nc := n.as(t, "subscriber")
	sub := must(nc.SubscribeSync("user.reauth_required.>"))(t)
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	outcomesOfOneUser(t, n)
	must(sub.NextMsg(5 * time.Second))(t)
}

func TestRoleAuditorMayReplay(t *testing.T) {
	n := startNATSRoles(t)
	outcomesOfOneUser(t, n)
	for name, q := range map[string]consumers.Query{"all": {}, "user": {Provider: "acme", User: "u1"}, "since": {Since: time.Now().Add(-time.Hour)}} {
		nc := n.as(t, "auditor")
		events := 0
		for e, err := range consumers.Replay(t.Context(), nc, q) {
			if err != nil || e.ID != "e1" {
				t.Errorf("%s: got %q, %v; the server refused: %v", name, e.ID, err, nc.LastError())
			}
			events++
		}
		if events != 1 {
			t.Errorf("%s: %d events, want 1; the server refused: %v", name, events, nc.LastError())
		}
	}
}

// The commands work without an SDK: a subject is all it takes, and the server's answer says where
// it is stored.
func TestRolePublisherMayPublishByHand(t *testing.T) {
	n := startNATSRoles(t)
	outcomesOfOneUser(t, n)
	nc := n.as(t, "publisher")
	for _, subject := range []string{"user.refresh_due.acme.u1", "user.login.acme.u1"} {
		if _, err := nc.Request(subject, nil, 5*time.Second); err != nil {
			t.Errorf("%s: %v", subject, err)
		}
	}
}
