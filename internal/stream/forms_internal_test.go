package stream

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/golden"
	"github.com/renewd/renewd/schema"
)

// What a message's headers say, and the lease, stays readable for every later version: a timer may
// fire weeks after it was set.
func TestFormsStayReadable(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)
	t.Run("work", func(t *testing.T) {
		w := grant.Work{
			Cause: schema.Cause{ID: "c 1%", Type: schema.UserRefreshDue, Source: "/billing ü", Time: at, Reason: "why\nnot", Sender: "shop"},
			Want:  schema.WantTokens, MinValid: 90 * time.Second, Mark: grant.Mark{Version: 7, Token: "fingerprint"}, Deferrals: 2, Again: true,
		}
		filled(t, w, "Refused") // which is of one delivery
		golden.Check(t, "testdata/work", encoded(t, workHeader(w)), func(t *testing.T, kept []byte) []byte {
			w, err := parseWork(decoded[schema.Header](t, kept))
			if err != nil {
				t.Fatal(err)
			}
			return encoded(t, workHeader(w))
		})
	})
	t.Run("parcel", func(t *testing.T) {
		p := grant.Parcel{Version: 7, Parent: "fingerprint", Candidate: true}
		filled(t, p, "Sealed", "Sequence", "Time") // which are the message's own
		golden.Check(t, "testdata/parcel", encoded(t, parcelHeader(p)), func(t *testing.T, kept []byte) []byte {
			p, err := parcelOf(&jetstream.RawStreamMsg{Header: nats.Header(decoded[schema.Header](t, kept))})
			if err != nil {
				t.Fatal(err)
			}
			return encoded(t, parcelHeader(p))
		})
	})
	t.Run("deferred login", func(t *testing.T) {
		original := schema.Header{"ce-id": {"l 1"}, "ce-type": {string(schema.UserLogin)}, "ce-source": {"/signin"}}
		order := grant.Order{Stream: at, Sequence: 9, Time: at.Add(time.Second)}
		golden.Check(t, "testdata/deferred", encoded(t, deferredHeader(original, order, 3)), func(t *testing.T, kept []byte) []byte {
			h := decoded[schema.Header](t, kept)
			order, deferrals, err := parseDeferred(h)
			if err != nil {
				t.Fatal(err)
			}
			return encoded(t, deferredHeader(own(h), order, deferrals))
		})
	})
	t.Run("lease", func(t *testing.T) {
		l := lease{
			Holder: "worker-1", Until: at, NextAt: at, Created: at, Stuck: map[string]uint64{"propelauth/jane": 7},
			Old: []string{"a-key"}, Left: 1,
			Last: Walk{Live: 1, Due: 2, Overdue: 3, Woken: 4, Fired: 5, Armed: 6, Expired: 7, Parked: 8, Unparked: 9, Foreign: 10},
		}
		filled(t, l, "kv", "revision", "key", "lasts", "now")
		filled(t, l.Last)
		golden.Check(t, "testdata/lease", encoded(t, l), func(t *testing.T, kept []byte) []byte { return encoded(t, decoded[lease](t, kept)) })
	})
}

// filled fails for a field that is empty: what a form leaves out is not held by its golden file.
func filled(t *testing.T, form any, but ...string) {
	t.Helper()
	v := reflect.ValueOf(form)
	empty := map[string]bool{}
	for i := range v.NumField() {
		empty[v.Type().Field(i).Name] = v.Field(i).IsZero()
	}
	for _, name := range but {
		delete(empty, name)
	}
	for name, is := range empty {
		if is {
			t.Errorf("%s of %T is empty: set it here", name, form)
		}
	}
}

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func decoded[T any](t *testing.T, raw []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	return v
}
