package stream_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// What somebody else wrote where renewd keeps a user's state must not stop that user: it is taken
// for none, and said once.
func TestAForeignMessageStopsNobody(t *testing.T) {
	js, _ := fresh(t)
	ctx := t.Context()
	var log bytes.Buffer
	e := engine(t, js, stream.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	user := "propelauth." + schema.EscapeUser(alice.User)
	fronts := []string{"parked.", "user.synced.", "user.reauth_required.", "user.refresh_failed.", "user.forgotten.", "message.rejected."}
	for _, front := range fronts {
		_, err := js.PublishMsg(ctx, &nats.Msg{Subject: front + user, Header: nats.Header{"renewd-record": {"99999999999999999 x y"}}, Data: []byte("?")})
		must(t, err)
	}
	for range 2 {
		if m, err := e.Newest(ctx, alice); err != nil || m != (grant.Mark{}) {
			t.Errorf("Newest = %+v, %v", m, err)
		}
		if _, found, err := e.Parked(ctx, alice); found || err != nil {
			t.Errorf("Parked = %v, %v", found, err)
		}
		if _, found, err := e.LastOutcome(ctx, alice); found || err != nil {
			t.Errorf("LastOutcome = %v, %v", found, err)
		}
		if answered, err := e.Answered(ctx, alice, "x"); answered || err != nil {
			t.Errorf("Answered = %v, %v", answered, err)
		}
	}
	for _, front := range fronts {
		if n := strings.Count(log.String(), `subject="`+front); n != 1 {
			t.Errorf("%s: said %d times", front, n)
		}
	}
	must(t, e.Request(ctx, alice, command("r")))
}

// A header that no client can decode is as good as none.
func TestAHeaderThatCannotBeDecodedStopsNobody(t *testing.T) {
	js, e := fresh(t)
	ctx := t.Context()
	raw := connectRaw(t, js)
	raw("parked.propelauth.u1", "NATS/1.0\r\nno colon\r\n\r\n")
	raw("renewal.timer.propelauth.u1", "NATS/1.0\r\nno colon\r\n\r\n")
	k := grant.Key{Provider: "propelauth", User: "u1"}
	if _, found, err := e.Parked(ctx, k); found || err != nil {
		t.Errorf("Parked = %v, %v", found, err)
	}
	must(t, e.Request(ctx, k, command("r")))
	raw("renewal.timer.propelauth.u1", "NATS/1.0\r\nce-id: 1\r\nce-type: user.refresh_due\r\n\r\n") // no schedule
	must(t, e.Wake(ctx, k, command("w")))
	if n := messages(t, js, stream.Renewals); n != 1 {
		t.Errorf("%d messages, want the renewal", n)
	}
}

func TestARejectionIsAnAnswer(t *testing.T) {
	_, e := fresh(t)
	rejected := outcome("o-r", schema.MessageRejected)
	must(t, e.Publish(t.Context(), rejected))
	if answered, err := e.Answered(t.Context(), alice, "o-r"); !answered || err != nil {
		t.Errorf("Answered = %v, %v", answered, err)
	}
}
