package consumers_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/schema"
)

// outcomes makes the OUTCOMES stream.
func outcomes(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js := stream(t, nc)
	// A server may still be at removing one that was deleted.
	eventually(t, "OUTCOMES is made", func() bool {
		var subjects []string
		for _, of := range schema.Outcomes() {
			subjects = append(subjects, string(of), string(of)+".>") // malformed ones too
		}
		_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
			Name: "OUTCOMES", Subjects: subjects,
		})
		return err == nil
	})
	return js
}

// say publishes an outcome.
func say(t testing.TB, js jetstream.JetStream, id string, of schema.Type, user string, data any) {
	t.Helper()
	raw, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	e := schema.Event{
		ID:       id,
		Source:   "/renewd",
		Type:     of,
		Provider: "propelauth",
		User:     user,
		Time:     time.Now(),
		Data:     raw,
	}
	h, body := schema.Encode(e)
	msg := &nats.Msg{Subject: schema.Subjects{}.Of(e.Address()), Header: nats.Header(h), Data: body}
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}
