package stream_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

func place(sequence uint64) grant.Position {
	return grant.Position{
		Stream:   time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC),
		Sequence: sequence,
		Time:     time.Date(2026, 2, 2, 3, 4, int(sequence), 9, time.UTC),
	}
}

func putOff(
	t *testing.T, e *stream.Engine, at time.Time, sequence uint64, deferrals int, body string,
) {
	t.Helper()
	h := schema.Header{
		"ce-id":           {body},
		"Content-Type":    {"application/json"},
		"Nats-Msg-Id":     {"x"},
		"nats-rollup":     {"all"},
		"Renewd-Deferred": {"9"},
		"Renewd-Sender":   {"somebody-else"},
	}
	must(t, e.DeferLogin(t.Context(), loginOf(alice), at, place(sequence), deferrals, h,
		[]byte(body)))
}

func deferredLogin(t *testing.T, js jetstream.JetStream) jetstream.Msg {
	t.Helper()
	m := next(t, js, topology.Renewals, topology.ConsumerDeferred, time.Minute)
	if m == nil {
		t.Fatal("no deferred login came")
	}
	return m
}

func TestALoginPutOffComesBackAsItWas(t *testing.T) {
	js, e := fresh(t)
	at := time.Now().Add(300 * time.Millisecond)
	putOff(t, e, at, 7, 2, "sealed")
	if waits, err := e.LoginWaits(t.Context(), alice); !waits || err != nil {
		t.Errorf("LoginWaits before = %v, %v", waits, err)
	}
	m := deferredLogin(t, js)
	meta, err := m.Metadata()
	must(t, err)
	if meta.Timestamp.Before(at) {
		t.Errorf("fired %v too early", at.Sub(meta.Timestamp))
	}
	if waits, err := e.LoginWaits(t.Context(), alice); !waits || err != nil {
		t.Errorf("LoginWaits while in hand = %v, %v", waits, err)
	}
	of, position, deferrals, h, err := e.ParseDeferred(m.Subject(), schema.Header(m.Headers()))
	if err != nil || of != loginOf(alice) || position != place(7) || deferrals != 2 ||
		string(m.Data()) != "sealed" {
		t.Errorf("got %+v, %+v, %d, %q, %v", of, position, deferrals, m.Data(), err)
	}
	want := (schema.Header{"ce-id": {"sealed"}, "Content-Type": {"application/json"}})
	if !reflect.DeepEqual(h, want) {
		t.Errorf("headers %v, want %v", h, want)
	}
	ack(t, m)
	if waits, err := e.LoginWaits(t.Context(), alice); waits || err != nil ||
		messages(t, js, topology.Renewals) != 0 {
		t.Errorf("LoginWaits after = %v, %v", waits, err)
	}
}

func TestANewerLoginPutOffReplacesAnOlderOneNeverTheOtherWayRound(t *testing.T) {
	js, e := fresh(t)
	neverTheOtherWayRound(t, js, e)
}

func TestANewerLoginPutOffReplacesAnOlderOneOnThreeNodes(t *testing.T) {
	js, e := freshOnThreeNodes(t)
	neverTheOtherWayRound(t, js, e)
}

func neverTheOtherWayRound(t *testing.T, js jetstream.JetStream, e *stream.Engine) {
	t.Helper()
	far, soon := time.Now().Add(time.Hour), time.Now().Add(-time.Second)
	putOff(t, e, far, 7, 1, "seven")
	putOff(t, e, far, 6, 1, "six")
	putOff(t, e, far, 8, 1, "eight")
	putOff(t, e, soon, 7, 2, "seven")
	early := next(t, js, topology.Renewals, topology.ConsumerDeferred, 500*time.Millisecond)
	if early != nil {
		t.Fatalf("%s came, an hour before the newest", early.Data())
	}
	putOff(t, e, soon, 8, 2, "eight")
	m := deferredLogin(t, js)
	if string(m.Data()) != "eight" {
		t.Fatalf("%s came, want the newest", m.Data())
	}
	// The newest is due and being handled: an older one that is put off now must not fire over it.
	putOff(t, e, soon, 7, 3, "seven")
	if n := messages(t, js, topology.Renewals); n != 1 {
		t.Errorf("%d messages, want the one in hand", n)
	}
	// Its own worker may put it off again: then the message being handled goes.
	putOff(t, e, far, 8, 3, "eight")
	ack(t, m)
	eventually(t, "only the timer is left", func() bool {
		return messages(t, js, topology.Renewals) == 1
	})
}

func TestParseDeferredRefuses(t *testing.T) {
	_, e := fresh(t)
	k, _, _, _, err := e.ParseDeferred("deferred.due.propelauth.u1", schema.Header{"ce-id": {"1"}})
	if err == nil || k.User != "u1" {
		t.Errorf("a bare message: %v, %v", k, err)
	}
	if _, _, _, _, err := e.ParseDeferred("renewal.due.propelauth.u1", nil); err == nil {
		t.Error("a renewal was taken for a login")
	}
	h := schema.Header{
		"renewd-login-stream":   {"2026-01-02T03:04:05Z"},
		"renewd-login-time":     {"2026-01-02T03:04:05Z"},
		"renewd-login-sequence": {"7"},
		"renewd-deferred":       {"1"},
	}
	if of, _, _, _, err := e.ParseDeferred("deferred.due.propelauth.u1", h); err != nil ||
		of.User != "u1" || of.Sender != "" {
		t.Errorf("one that was put off by a version without senders: %+v, %v", of, err)
	}
	h.Set("renewd-sender", "a.b")
	if _, _, _, _, err := e.ParseDeferred("deferred.due.propelauth.u1", h); err == nil {
		t.Error("a sender that is no name was taken")
	}
}

// Logins put off are no timers: the depths tell them apart.
func TestLoginsPutOffAreCountedApart(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("x")))
	putOff(t, e, time.Now().Add(-time.Second), 7, 1, "due")
	m := deferredLogin(t, js)
	h := schema.Header{}
	must(t, e.DeferLogin(ctx, loginOf(grant.Key{Provider: alice.Provider, User: "bob"}),
		time.Now().Add(time.Hour), place(8), 1, h, nil))
	d, err := e.Depths(ctx)
	if err != nil || d.Timers != 1 || d.Deferred != 2 {
		t.Errorf("%+v, %v", d, err)
	}
	ack(t, m)
}

func TestTheCreationOfLOGINSIsLookedUpWhenItsSequenceFalls(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	created := func(sequence uint64) time.Time {
		t.Helper()
		at, err := e.LoginsCreated(ctx, sequence)
		must(t, err)
		return at
	}
	first := created(500)
	if again := created(501); !again.Equal(first) {
		t.Errorf("created %v, then %v", first, again)
	}
	must(t, js.DeleteStream(ctx, topology.Logins))
	ensure(t, js, wanted(t, ""))
	if anew := created(1); !anew.After(first) {
		t.Errorf("made anew after %v, and still said to be of %v", first, anew)
	}
	if _, err := e.LoginsCreated(ctx, 2); err != nil {
		t.Error(err)
	}
}
