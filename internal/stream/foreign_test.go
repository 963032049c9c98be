package stream_test

import (
	"bufio"
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// What another writer wrote where renewd keeps a user's state must not stop that user: it counts as
// no message, and is logged once.
func TestAForeignMessageStopsNobody(t *testing.T) {
	js, _ := fresh(t)
	ctx := t.Context()
	var log bytes.Buffer
	e := engine(t, js, stream.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	user := "propelauth." + schema.EscapeUser(alice.User)
	fronts := []string{
		"parked.", "user.synced.", "user.reauth_required.", "user.refresh_failed.",
		"user.forgotten.", "message.rejected.",
	}
	for _, front := range fronts {
		_, err := js.PublishMsg(ctx, &nats.Msg{
			Subject: front + user,
			Header:  nats.Header{"renewd-record": {"99999999999999999 x y"}},
			Data:    []byte("?"),
		})
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

// A header that no client can decode counts as no header.
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
	// A timer without a schedule.
	raw("renewal.timer.propelauth.u1", "NATS/1.0\r\nce-id: 1\r\nce-type: user.refresh_due\r\n\r\n")
	must(t, e.Wake(ctx, k, command("w")))
	if n := messages(t, js, topology.Renewals); n != 1 {
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

// connectRaw publishes with a header block as it is, which no client would write.
func connectRaw(t *testing.T, js jetstream.JetStream) func(subject, header string) {
	t.Helper()
	nc := js.Conn()
	return func(subject, header string) {
		t.Helper()
		var conn net.Conn
		var err error
		if in := nc.Opts.InProcessServer; in != nil {
			conn, err = in.InProcessConn()
		}
		must(t, err)
		defer conn.Close()
		lines := bufio.NewScanner(conn)
		lines.Scan() // INFO
		_, err = fmt.Fprintf(conn,
			"CONNECT {\"headers\":true,\"no_responders\":true,\"verbose\":false}\r\n"+
				"HPUB %s %d %d\r\n%s\r\nPING\r\n",
			subject, len(header), len(header), header)
		must(t, err)
		for lines.Scan() {
			if lines.Text() == "PONG" {
				return
			}
			if strings.HasPrefix(lines.Text(), "-ERR") {
				t.Fatal(lines.Text())
			}
		}
		t.Fatal("no answer")
	}
}
