package runner_test

import (
	"testing"
	"time"

	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// A rejection names the command by source and id, as its publisher wrote them, in every mode. Two
// commands that differ in either are rejected apart. A command that comes again is rejected under
// the same id.
func TestRejectionNamesSourceAndID(t *testing.T) {
	at := time.Date(2026, 11, 2, 8, 30, 0, 0, time.UTC)
	reject := func(h schema.Header, body string) (schema.Event, schema.Cause) {
		t.Helper()
		m := &runner.Message{
			Subject:    "user.refresh_due.propelauth.u17",
			Header:     h,
			Data:       []byte(body),
			Stream:     "REQUESTS",
			Sequence:   4711,
			Time:       at,
			Deliveries: 1,
		}
		e := runner.Rejected(schema.Subjects{}, m, nil, "/renewd", time.Now())
		d, err := schema.Data[schema.Rejected](e)
		if err != nil {
			t.Fatal(err)
		}
		return e, d.Cause
	}
	ids := map[string]string{}
	for name, tt := range map[string]struct {
		h          schema.Header
		body       string
		source, id string
	}{
		"crm": {
			schema.Header{"ce-id": {"invoice%2042"}, "ce-source": {"/crm"}}, "<html>", "/crm",
			"invoice 42",
		},
		"billing": {
			schema.Header{"ce-id": {"invoice%2042"}, "ce-source": {"/billing"}}, "<html>",
			"/billing", "invoice 42",
		},
		"structured": {
			schema.Header{"Content-Type": {"application/cloudevents+json"}},
			`{"id":"42","source":"/jobs","data":"x"}`, "/jobs", "42",
		},
		"bare": {nil, "<html>", "", "REQUESTS-4711"},
	} {
		e, cause := reject(tt.h, tt.body)
		if cause.Source != tt.source || cause.ID != tt.id {
			t.Errorf("%s: cause %+v", name, cause)
		}
		if again, _ := reject(tt.h, tt.body); again.ID != e.ID {
			t.Errorf("%s: rejected again as %s, not %s", name, again.ID, e.ID)
		}
		if other := ids[e.ID]; other != "" {
			t.Errorf("%s and %s are rejected as %s", name, other, e.ID)
		}
		ids[e.ID] = name
	}
}

// A rejection names the sender, and lands where its user is looked for, also where the rest of the
// subject is malformed.
func TestRejectionNamesItsSender(t *testing.T) {
	for subject, want := range map[string]struct{ of, user, sender string }{
		"from.shop.user.login.acme.u17": {"user.login", "u17", "shop"},
		"from.shop.user.refresh_due.acme.jane@example.com": {
			"user.refresh_due", "jane@example.com", "shop",
		},
		"from.shop.user.synced.acme.u17": {"user.synced", "u17", "shop"},
		"from.Shop.user.login.acme.u17":  {"from.Shop", "login.acme.u17", ""},
		"from.user.user.login.acme.user.login.acme.u17": {
			"user.login", "user.login.acme.u17", "user",
		},
	} {
		e := runner.Rejected(schema.Subjects{},
			&runner.Message{Subject: subject, Stream: "LOGINS", Sequence: 1}, nil, "/renewd",
			time.Now())
		d, err := schema.Data[schema.Rejected](e)
		if err != nil {
			t.Fatal(err)
		}
		if string(d.Cause.Type) != want.of || e.User != want.user ||
			d.Cause.Sender != want.sender || d.Subject != subject {
			t.Errorf("%s: of %s, from %q: %+v", subject, e.User, d.Cause.Sender, d.Cause)
		}
	}
}
