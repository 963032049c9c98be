package streams

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Snapshot is a stream as `nats stream backup` keeps it.
type Snapshot struct {
	meta struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	chunks [][]byte
}

const snapshotPatience = time.Minute

// Backup asks the server for a snapshot of a stream, as `nats stream backup` does.
func Backup(t testing.TB, js jetstream.JetStream, name string) (s Snapshot) {
	t.Helper()
	sub, err := js.Conn().SubscribeSync(nats.NewInbox())
	Must(t, err)
	ask(t, js, "STREAM.SNAPSHOT."+name, map[string]any{"deliver_subject": sub.Subject}, &s.meta)
	for {
		m, err := sub.NextMsg(snapshotPatience)
		Must(t, err)
		if len(m.Data) == 0 {
			if status := m.Header.Get("Status"); status != "" && status != "204" {
				t.Fatalf("the snapshot ended with %s %s", status, m.Header.Get("Description"))
			}
			return s
		}
		s.chunks = append(s.chunks, m.Data)
		if m.Reply != "" {
			Must(t, m.Respond(nil)) // the reply lets the server send more
		}
	}
}

// Restore puts the snapshot in place of the stream, as `nats stream rm` and `nats stream restore`
// do.
func (s Snapshot) Restore(t testing.TB, js jetstream.JetStream, name string) {
	t.Helper()
	Must(t, js.DeleteStream(t.Context(), name))
	var at struct {
		Subject string `json:"deliver_subject"`
	}
	ask(t, js, "STREAM.RESTORE."+name, s.meta, &at)
	for _, chunk := range append(s.chunks, nil) {
		m, err := js.Conn().Request(at.Subject, chunk, snapshotPatience)
		Must(t, err)
		if len(chunk) == 0 {
			answered(t, m.Data, nil)
		}
	}
}

func ask(t testing.TB, js jetstream.JetStream, call string, request, answer any) {
	t.Helper()
	body, err := json.Marshal(request)
	Must(t, err)
	m, err := js.Conn().Request("$JS.API."+call, body, snapshotPatience)
	Must(t, err)
	answered(t, m.Data, answer)
}

func answered(t testing.TB, raw []byte, answer any) {
	t.Helper()
	var e struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	Must(t, json.Unmarshal(raw, &e))
	if e.Error != nil {
		t.Fatal(e.Error.Description)
	}
	if answer != nil {
		Must(t, json.Unmarshal(raw, answer))
	}
}
