package systemtest_test

import (
	"encoding/json"
	"time"

	"github.com/nats-io/nats.go"
)

// snapshot is a stream as `nats stream backup` keeps it.
type snapshot struct {
	meta struct {
		Config json.RawMessage `json:"config"`
		State  json.RawMessage `json:"state"`
	}
	chunks [][]byte
}

const snapshotPatience = 20 * time.Second

// backupStream asks the server for a snapshot of a stream, as `nats stream backup` does.
func (w *world) backupStream(name string) (s snapshot) {
	w.t.Helper()
	nc := w.js.Conn()
	sub, err := nc.SubscribeSync(nats.NewInbox())
	w.must(err)
	w.api("STREAM.SNAPSHOT."+name, map[string]any{"deliver_subject": sub.Subject}, &s.meta)
	for {
		m, err := sub.NextMsg(snapshotPatience)
		w.must(err)
		if len(m.Data) == 0 {
			return s
		}
		s.chunks = append(s.chunks, m.Data)
		if m.Reply != "" {
			w.must(m.Respond(nil)) // lets the server send more
		}
	}
}

// restoreStream puts a snapshot in place of the stream, as `nats stream rm` and `nats stream
// restore` do.
func (w *world) restoreStream(name string, s snapshot) {
	w.t.Helper()
	w.must(w.js.DeleteStream(w.t.Context(), name))
	var at struct {
		Subject string `json:"deliver_subject"`
	}
	w.api("STREAM.RESTORE."+name, s.meta, &at)
	for _, chunk := range append(s.chunks, nil) {
		m, err := w.js.Conn().Request(at.Subject, chunk, snapshotPatience)
		w.must(err)
		if len(chunk) == 0 {
			w.answered(m.Data, nil)
		}
	}
}

func (w *world) api(call string, request, answer any) {
	w.t.Helper()
	body, err := json.Marshal(request)
	w.must(err)
	m, err := w.js.Conn().Request("$JS.API."+call, body, snapshotPatience)
	w.must(err)
	w.answered(m.Data, answer)
}

func (w *world) answered(raw []byte, answer any) {
	w.t.Helper()
	var e struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	w.must(json.Unmarshal(raw, &e))
	if e.Error != nil {
		w.t.Fatal(e.Error.Description)
	}
	if answer != nil {
		w.must(json.Unmarshal(raw, answer))
	}
}
