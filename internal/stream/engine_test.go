package stream_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/trace"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

func TestTimerFiresWithItsWorkAndTrace(t *testing.T) {
	js, e := fresh(t)
	want := grant.Work{
		Cause: schema.Cause{
			ID:     "c 1%\"é",
			Type:   schema.UserRefreshDue,
			Source: "/billing",
			Time:   time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC),
			Reason: "plan changed\r\nNats-Rollup: all",
			Sender: "shop",
		},
		Want:      schema.WantTokens,
		MinValid:  90 * time.Second,
		Mark:      grant.Mark{Version: 1_700_000_000_123, Token: "Zm9v_-"},
		Deferrals: 2,
		Again:     true,
	}
	span := trace.NewSpanContext(trace.SpanContextConfig{
		TraceID:    trace.TraceID{1},
		SpanID:     trace.SpanID{2},
		TraceFlags: trace.FlagsSampled,
	})
	at := time.Now().Add(300 * time.Millisecond)
	must(t, e.Arm(trace.ContextWithSpanContext(t.Context(), span), alice, at, want))

	m := renewal(t, js)
	meta, err := m.Metadata()
	must(t, err)
	if meta.Timestamp.Before(at) {
		t.Errorf("fired %v too early", at.Sub(meta.Timestamp))
	}
	k, got, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
	if err != nil || k != alice || got != want {
		t.Errorf("ParseWork = %v, %+v, %v; want %+v", k, got, err, want)
	}
	if tp := m.Headers().Get("traceparent"); !strings.Contains(tp, span.TraceID().String()) {
		t.Errorf("traceparent = %q", tp)
	}
	ack(t, m)
	if n := messages(t, js, topology.Renewals); n != 0 {
		t.Errorf("%d messages left, the timer should be gone", n)
	}
}

func TestArm(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("far")))
	// Replaces it, and is due at once.
	must(t, e.Arm(ctx, alice, time.Now().Add(-time.Hour), work("overdue")))
	m := renewal(t, js)
	_, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
	if err != nil || w.Cause.ID != "overdue" {
		t.Errorf("fired %+v, %v", w, err)
	}
	ack(t, m)
	if n := messages(t, js, topology.Renewals); n != 0 {
		t.Errorf("%d messages left, want none", n)
	}
}

func TestWake(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()

	must(t, e.Wake(ctx, alice, work("without a timer")))
	ack(t, renewal(t, js))

	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("timer")))
	must(t, e.Wake(ctx, alice, work("first")))
	must(t, e.Wake(ctx, alice, work("second")))
	if n := messages(t, js, topology.Renewals); n != 1 {
		t.Fatalf("after two wakes of an armed grant %d messages, want 1", n)
	}
	inHand := renewal(t, js)
	_, w, _ := e.ParseWork(inHand.Subject(), schema.Header(inHand.Headers()))
	if w.Cause.ID != "second" {
		t.Fatalf("got %+v, want the newer wake", w)
	}

	// A request while a renewal is being handled gets another renewal, and the ack of the first
	// does not take the second away.
	must(t, e.Wake(ctx, alice, work("third")))
	ack(t, inHand)
	again := renewal(t, js)
	_, w, _ = e.ParseWork(again.Subject(), schema.Header(again.Headers()))
	if w.Cause.ID != "third" {
		t.Fatalf("got %+v, want the wake that came meanwhile", w)
	}
	ack(t, again)

	must(t, e.Wake(ctx, alice, work("fourth")))
	must(t, e.Arm(ctx, alice, time.Now().Add(time.Hour), work("timer")))
	must(t, e.Cancel(ctx, alice))
	if n := messages(t, js, topology.Renewals); n != 0 {
		t.Errorf("after Cancel %d messages", n)
	}
}

func TestParseWorkRefuses(t *testing.T) {
	_, e := fresh(t)
	good := schema.Header{"ce-id": {"1"}, "ce-type": {"renewal.timer"}}
	for name, c := range map[string]struct {
		subject string
		header  schema.Header
		want    string
	}{
		"other subject": {"renewal.timer.propelauth.u1", good, "renewal.due.<provider>.<user>"},
		"no user":       {"renewal.due.propelauth", good, "renewal.due.<provider>.<user>"},
		"bad provider":  {"renewal.due.Propel.u1", good, "provider"},
		"raw user":      {"renewal.due.propelauth.u1.x", good, "u1.x"},
		"bare":          {"renewal.due.propelauth.u1", nil, "ce-id"},
		"bad time": {
			"renewal.due.propelauth.u1",
			schema.Header{"ce-id": {"1"}, "ce-type": {"x"}, "ce-time": {"now"}},
			"ce-time",
		},
		"bad min valid": {
			"renewal.due.propelauth.u1",
			schema.Header{"ce-id": {"1"}, "ce-type": {"x"}, "renewd-min-valid": {"5"}},
			"renewd-min-valid",
		},
		"bad escape": {
			"renewal.due.propelauth.u1", schema.Header{"ce-id": {"%"}, "ce-type": {"x"}}, "ce-id",
		},
		"bad again": {
			"renewal.due.propelauth.u1",
			schema.Header{"ce-id": {"1"}, "ce-type": {"x"}, "renewd-again": {"maybe"}},
			"renewd-again",
		},
		"bad mark": {
			"renewal.due.propelauth.u1",
			schema.Header{"ce-id": {"1"}, "ce-type": {"x"}, "renewd-record": {"x y"}},
			"renewd-record",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := e.ParseWork(c.subject, c.header)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %s", err, c.want)
			}
		})
	}
}

// Answers of which a publisher can cause more than there are users are kept for a day only.
func TestAnswersAboutNoRecordAreKeptShortly(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, wanted(t, ""))
	e := engine(t, js, stream.Config{SyncedTTL: time.Hour, RejectedTTL: 2 * time.Hour})
	record := grant.Mark{Version: 7, Token: "t"}
	for _, c := range []struct {
		of   schema.Type
		mark grant.Mark
		want string
	}{
		{schema.UserSynced, record, "1h0m0s"},
		{schema.MessageRejected, grant.Mark{}, "2h0m0s"},
		{schema.MessageRejected, record, "2h0m0s"},
		{schema.UserRefreshFailed, grant.Mark{}, "2h0m0s"},
		{schema.UserRefreshFailed, record, ""},
		{schema.UserReauthRequired, record, ""},
		{schema.UserForgotten, grant.Mark{}, ""},
	} {
		event := outcome(fmt.Sprintf("%s %v", c.of, c.mark), c.of)
		must(t, e.PublishMarked(t.Context(), event, c.mark))
		s, err := js.Stream(t.Context(), topology.Outcomes)
		must(t, err)
		m, err := s.GetLastMsgForSubject(t.Context(), schema.Subjects{}.Of(event.Address()))
		must(t, err)
		if got := m.Header.Get(jetstream.MsgTTLHeader); got != c.want {
			t.Errorf("%s of %v is kept for %q, want %q", c.of, c.mark, got, c.want)
		}
	}
}

// An outcome that an earlier version stored under an id without the sender is found by the sender
// in its cause.
func TestOutcomesOfBeforeAreFound(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, wanted(t, ""))
	e := engine(t, js, stream.Config{})
	of := schema.Cause{ID: "42", Type: schema.UserRefreshDue, Source: "/crm", Sender: "shop"}
	unnamed, other := of, of
	unnamed.Sender, other.Sender = "", "crm"
	out := outcome(grant.OutcomeID(alice, unnamed), schema.UserSynced)
	out.Data = json.RawMessage(`{"cause":{"id":"42","type":"user.refresh_due",` +
		`"source":"/crm","sender":"shop"}}`)
	must(t, e.Publish(t.Context(), out))
	for id, want := range map[string]bool{
		grant.OutcomeID(alice, of):    true,
		grant.OutcomeID(alice, other): false,
	} {
		if got, err := e.Answered(t.Context(), alice, id); got != want || err != nil {
			t.Errorf("Answered = %v, %v, want %v", got, err, want)
		}
		got, err := e.AnsweredSince(t.Context(), alice, id, e.Now().Add(-time.Hour))
		if got != want || err != nil {
			t.Errorf("AnsweredSince = %v, %v, want %v", got, err, want)
		}
	}
}

// Promise 4: the answer to a message is stored once, however long after the first delivery another
// one is answered, and whatever of the user was published meanwhile.
func TestTheAnswerToAMessageIsStoredOnce(t *testing.T) {
	js := start(t, natsd.Config{})
	want := wanted(t, "")
	want.Duplicates = 200 * time.Millisecond
	ensure(t, js, want)
	e := engine(t, js, stream.Config{})
	ctx := t.Context()
	stored := e.Now().Add(-5 * time.Minute)
	once := func(redelivered bool) {
		t.Helper()
		must(t, e.PublishOnce(ctx, outcome("answer", schema.MessageRejected), stored, redelivered))
	}
	once(false)
	filler := outcome("filler", schema.ProviderDegraded)
	eventually(t, "the duplicate window has passed", func() bool {
		before := messages(t, js, topology.Outcomes)
		must(t, e.Publish(ctx, filler))
		return messages(t, js, topology.Outcomes) > before && before > 1
	})
	before := messages(t, js, topology.Outcomes)
	once(false) // as after a server took over
	once(true)
	must(t, e.Publish(ctx, outcome("of another message", schema.MessageRejected)))
	once(true)
	if n := messages(t, js, topology.Outcomes) - before; n != 1 {
		t.Errorf("%d more are stored, want the one of another message", n)
	}
}

// After a flood of messages that name no user, of which all answers are in one place, the answer to
// each costs a bounded number of reads.
func TestTheAnswerToAMessageIsNotLookedForWithoutEnd(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	for n := range 600 {
		must(t, e.Publish(ctx, outcome(fmt.Sprint("other-", n), schema.MessageRejected)))
	}
	const reads = "$JS.API.STREAM.MSG.GET.>"
	asked, err := js.Conn().SubscribeSync(reads)
	must(t, err)
	must(t, js.Conn().Flush())
	stored := e.Now().Add(-5 * time.Minute)
	must(t, e.PublishOnce(ctx, outcome("answer", schema.MessageRejected), stored, true))
	must(t, js.Conn().Flush())
	n, _, err := asked.Pending()
	must(t, err)
	must(t, asked.Unsubscribe())
	if n < 500 || n > 520 {
		t.Errorf("%d reads", n)
	}
	if n := messages(t, js, topology.Outcomes); n != 601 {
		t.Errorf("%d outcomes are stored", n)
	}
}

func TestOutcomes(t *testing.T) {
	js := start(t, natsd.Config{})
	want := wanted(t, "")
	want.Duplicates = 200 * time.Millisecond
	ensure(t, js, want)
	e := engine(t, js, stream.Config{SyncedTTL: time.Hour})
	ctx := t.Context()

	if _, found, err := e.LastOutcome(ctx, alice); found || err != nil {
		t.Fatalf("LastOutcome of nobody: %v, %v", found, err)
	}
	first, other := outcome("o-1", schema.UserSynced), outcome("o-2", schema.UserRefreshFailed)
	must(t, e.Publish(ctx, first))
	must(t, e.Publish(ctx, first))
	must(t, e.Publish(ctx, outcome("o-1", schema.UserRefreshFailed))) // decided once more, later
	must(t, e.PublishMarked(ctx, other, grant.Mark{Version: 1}))
	if n := messages(t, js, topology.Outcomes); n != 2 {
		t.Errorf("%d outcomes stored, want 2: the same id is one", n)
	}
	// Beyond the duplicate window the server takes the same id again; what Answered says does not
	// depend on it.
	filler := outcome("", schema.ProviderDegraded)
	eventually(t, "the duplicate window of o-2 has passed", func() bool {
		before := messages(t, js, topology.Outcomes)
		filler.ID = "filler"
		must(t, e.Publish(ctx, filler))
		return messages(t, js, topology.Outcomes) > before && before > 2
	})
	for id, want := range map[string]bool{"o-1": true, "o-2": true, "o-3": false} {
		if got, err := e.Answered(ctx, alice, id); got != want || err != nil {
			t.Errorf("Answered(%s) = %v, %v", id, got, err)
		}
		if got, err := e.AnsweredSince(ctx, alice, id, e.Now().Add(-time.Hour)); got != want ||
			err != nil {
			t.Errorf("AnsweredSince(%s) = %v, %v", id, got, err)
		}
		if got, err := e.AnsweredSince(ctx, alice, id, e.Now().Add(time.Hour)); got || err != nil {
			t.Errorf("AnsweredSince(%s) = %v, %v an hour from now", id, got, err)
		}
	}
	if got, found, err := e.LastOutcome(ctx, alice); !found || err != nil || got.ID != "o-2" ||
		got.Type != schema.UserRefreshFailed {
		t.Errorf("LastOutcome = %+v, %v, %v", got, found, err)
	}
	s, err := js.Stream(ctx, topology.Outcomes)
	must(t, err)
	for of, ttl := range map[schema.Type]string{
		schema.UserSynced:        "1h0m0s",
		schema.UserRefreshFailed: "",
	} {
		m, err := s.GetLastMsgForSubject(ctx,
			schema.Subjects{}.Filter(of, alice.Provider, alice.User))
		must(t, err)
		if got := m.Header.Get("Nats-TTL"); got != ttl {
			t.Errorf("%s lives %q, want %q", of, got, ttl)
		}
	}
}

func TestPark(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	if _, found, err := e.Parked(ctx, alice); found || err != nil {
		t.Fatalf("Parked of nobody: %v, %v", found, err)
	}
	park(t, e, alice, grant.Parcel{Version: 7, Sealed: []byte("old")})
	old, _, err := e.Parked(ctx, alice)
	must(t, err)
	park(t, e, alice, grant.Parcel{Version: 8, Sealed: []byte{0, 1, 2, '\r', '\n'}})
	must(t, e.Unpark(ctx, alice, old.Sequence)) // a newer parcel stays
	p, found, err := e.Parked(ctx, alice)
	if err != nil || !found || p.Version != 8 || string(p.Sealed) != "\x00\x01\x02\r\n" {
		t.Fatalf("Parked = %+v, %v, %v", p, found, err)
	}
	must(t, e.Unpark(ctx, alice, p.Sequence))
	must(t, e.Unpark(ctx, alice, p.Sequence))
	if n := messages(t, js, topology.Parked); n != 0 {
		t.Errorf("%d parcels left", n)
	}
}

func TestKeysArePublishedOnce(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	if got, err := e.Keys(ctx); got != nil || err != nil {
		t.Fatalf("Keys before = %s, %v", got, err)
	}
	for _, set := range []string{`{"keys":[1]}`, `{"keys":[1]}`, `{"keys":[2]}`} {
		must(t, e.PublishKeys(ctx, []byte(set)))
		if got, err := e.Keys(ctx); string(got) != set || err != nil {
			t.Fatalf("Keys = %s, %v", got, err)
		}
	}
	kv, err := js.KeyValue(ctx, topology.BucketKeys)
	must(t, err)
	entry, err := kv.Get(ctx, "jwks")
	must(t, err)
	if entry.Revision() != 2 {
		t.Errorf("revision %d, want 2: the same set writes nothing", entry.Revision())
	}
}

func TestPublishWithoutStream(t *testing.T) {
	e := engine(t, start(t, natsd.Config{}), stream.Config{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := e.Wake(ctx, alice, work("w"))
	if err == nil || !strings.Contains(err.Error(), "propelauth/alice@example.com") {
		t.Errorf("error %v, want one with the key", err)
	}
}

func TestPrefixesAreApart(t *testing.T) {
	js := start(t, natsd.Config{})
	engines := map[string]*stream.Engine{}
	for _, prefix := range []string{"", "acme", "acme.eu"} {
		want := wanted(t, prefix)
		ensure(t, js, want)
		engines[prefix] = engine(t, js, stream.Config{Subjects: want.Subjects})
	}
	for prefix, e := range engines {
		must(t, e.Wake(t.Context(), alice, work("of "+prefix)))
		must(t, e.Publish(t.Context(), outcome("o-"+prefix, schema.UserSynced)))
		must(t, e.PublishKeys(t.Context(), []byte(prefix+"!")))
	}
	for prefix, e := range engines {
		name := wanted(t, prefix).Subjects.Name(topology.Renewals)
		m := next(t, js, name, topology.ConsumerRenew(alice.Provider), time.Minute)
		k, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers()))
		if err != nil || k != alice || w.Cause.ID != "of "+prefix {
			t.Errorf("prefix %q: %v %+v %v", prefix, k, w, err)
		}
		ack(t, m)
		if n := messages(t, js, name); n != 0 {
			t.Errorf("prefix %q: %d renewals of others", prefix, n)
		}
		if o, found, err := e.LastOutcome(t.Context(), alice); !found || err != nil ||
			o.ID != "o-"+prefix {
			t.Errorf("prefix %q: outcome %+v, %v", prefix, o, err)
		}
		if keys, err := e.Keys(t.Context()); err != nil || string(keys) != prefix+"!" {
			t.Errorf("prefix %q: keys %s, %v", prefix, keys, err)
		}
	}
}

func TestRestartKeepsTimers(t *testing.T) {
	dir := t.TempDir()
	server, err := natsd.Start(t.Context(), natsd.Config{StoreDir: dir})
	must(t, err)
	nc, err := server.Connect()
	must(t, err)
	js, err := jetstream.New(nc)
	must(t, err)
	ensure(t, js, wanted(t, ""))
	e := engine(t, js, stream.Config{})
	must(t, e.Arm(t.Context(), alice, time.Now().Add(time.Second), work("armed before")))
	nc.Close()
	server.Shutdown()

	js = start(t, natsd.Config{StoreDir: dir})
	e = engine(t, js, stream.Config{})
	m := renewal(t, js)
	if _, w, err := e.ParseWork(m.Subject(), schema.Header(m.Headers())); err != nil ||
		w.Cause.ID != "armed before" {
		t.Errorf("fired %+v, %v", w, err)
	}
	ack(t, m)
}

func TestBrake(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	must(t, e.Pause(ctx, alice.Provider, time.Now().Add(time.Hour)))
	must(t, e.Limit(ctx, alice.Provider, 1))
	must(t, e.Limit(ctx, alice.Provider, 1))
	must(t, e.Wake(ctx, alice, work("first")))
	must(t, e.Wake(ctx, grant.Key{Provider: alice.Provider, User: "bob"}, work("second")))
	m := next(t, js, topology.Renewals, topology.ConsumerRenew(alice.Provider),
		200*time.Millisecond)
	if m != nil {
		t.Fatal("a paused provider's renewal was delivered")
	}
	if n, err := e.Waiting(ctx, alice.Provider); n != 2 || err != nil {
		t.Errorf("Waiting = %d, %v; want 2", n, err)
	}
	must(t, e.Pause(ctx, alice.Provider, time.Now().Add(-time.Second)))
	ack(t, renewal(t, js))
	inHand := renewal(t, js)
	must(t, e.Wake(ctx, alice, work("third")))
	m = next(t, js, topology.Renewals, topology.ConsumerRenew(alice.Provider), 200*time.Millisecond)
	if m != nil {
		t.Error("more than one renewal in hand at limit 1")
	}
	ack(t, inHand)
	ack(t, renewal(t, js))
}
