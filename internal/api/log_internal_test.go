package api

import (
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/schema"
)

// A place that another worker told, and that this one has not read yet, is waited for. A place
// beyond the end of the stream is of a stream that was there before, and reading begins at its
// start.
func TestAPlaceAheadOfThisWorker(t *testing.T) {
	js := streams.Start(t, natsd.Config{})
	const stream = "OUTCOMES"
	config := jetstream.StreamConfig{Name: stream, Subjects: []string{"user.synced.>"}}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	subjects, err := schema.NewSubjects("")
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b", "c"} {
		e := schema.Event{
			ID: id, Source: "/renewd", Type: schema.UserSynced, Provider: "acme", User: "u",
			Time: time.Now(), Data: []byte(`{"cause":{"id":"c","type":"timer"},"version":1}`),
		}
		h, body := schema.Encode(e)
		m := &nats.Msg{Subject: subjects.Of(e.Address()), Header: nats.Header(h), Data: body}
		if _, err := js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	l := NewLog(js, subjects, stream, slog.New(slog.DiscardHandler))
	l.last = 1 // it has read one of three
	for place, want := range map[uint64]int{1: 0, 2: 0, 3: 0, 4: 1} {
		told := 0
		stopped, err := l.stored(t.Context(), place, nil, func(entry) error { told++; return nil })
		if err != nil || told != want {
			t.Errorf("from %d: told %d, stopped at %d, %v", place, told, stopped, err)
		}
		if place < 4 && stopped != place {
			t.Errorf("from %d: stopped at %d", place, stopped)
		}
	}
}
