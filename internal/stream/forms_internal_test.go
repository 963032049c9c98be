package stream

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/golden"
	"github.com/renewd/renewd/schema"
)

// What a message's headers say stays readable for every later version: a timer may
// fire weeks after it was set.
func TestFormsStayReadable(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	t.Run("work", func(t *testing.T) {
		w := grant.Work{
			Cause: schema.Cause{
				ID:     "c 1%",
				Type:   schema.UserRefreshDue,
				Source: "/billing ü",
				Time:   at,
				Reason: "why\nnot",
				Sender: "shop",
			},
			Want:      schema.WantTokens,
			MinValid:  90 * time.Second,
			Mark:      grant.Mark{Version: 7, Token: "fingerprint"},
			Deferrals: 2,
			Again:     true,
		}
		golden.Filled(t, w, "Refused") // which is of one delivery
		read := func(t *testing.T, kept []byte) []byte {
			w, err := parseWork(golden.Decode[schema.Header](t, kept))
			if err != nil {
				t.Fatal(err)
			}
			return golden.Encode(t, workHeader(w))
		}
		golden.Check(t, "testdata/work", golden.Encode(t, workHeader(w)), read)
	})
	t.Run("parcel", func(t *testing.T) {
		p := grant.Parcel{Version: 7, Parent: "fingerprint", Candidate: true}
		golden.Filled(t, p, "Sealed", "Sequence", "Time") // which are the message's own
		read := func(t *testing.T, kept []byte) []byte {
			p, err := parcelOf(&jetstream.RawStreamMsg{
				Header: nats.Header(golden.Decode[schema.Header](t, kept)),
			})
			if err != nil {
				t.Fatal(err)
			}
			return golden.Encode(t, parcelHeader(p))
		}
		golden.Check(t, "testdata/parcel", golden.Encode(t, parcelHeader(p)), read)
	})
	t.Run("deferred login", func(t *testing.T) {
		original := schema.Header{
			"ce-id":     {"l 1"},
			"ce-type":   {string(schema.UserLogin)},
			"ce-source": {"/signin"},
		}
		position := grant.Position{Stream: at, Sequence: 9, Time: at.Add(time.Second)}
		read := func(t *testing.T, kept []byte) []byte {
			h := golden.Decode[schema.Header](t, kept)
			position, deferrals, err := parseDeferred(h)
			if err != nil {
				t.Fatal(err)
			}
			return golden.Encode(t, deferredHeader(own(h), position, deferrals))
		}
		written := golden.Encode(t, deferredHeader(original, position, 3))
		golden.Check(t, "testdata/deferred", written, read)
	})
}
