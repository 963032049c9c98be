package request_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/consumers/request"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// engine keeps what is asked for.
type engine struct {
	fails error
	woken map[grant.Key]grant.Work
}

func (e *engine) Request(_ context.Context, k grant.Key, w grant.Work) error {
	if e.fails == nil {
		e.woken[k] = w
	}
	return e.fails
}

func TestARequestWakesItsGrant(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	alice := grant.Key{Provider: "propelauth", User: "alice@example.org"}
	away := errors.New("no leader")
	for name, tt := range map[string]struct {
		subject, body string
		fails         error
		want          *grant.Work
		malformed     string // the reason of a rejection
	}{
		"for what it wants": {
			subject: "user.refresh_due.propelauth.alice=40example=2Eorg", body: `{"want":"tokens","min_valid_seconds":60,"reason":"checkout"}`,
			want: &grant.Work{Want: "tokens", MinValid: time.Minute,
				Cause: schema.Cause{ID: "REQUESTS-9", Type: schema.UserRefreshDue, Source: "/nats", Time: at, Reason: "checkout"}},
		},
		"from a sender": {
			subject: "from.shop.user.refresh_due.propelauth.alice=40example=2Eorg", body: `{}`,
			want: &grant.Work{Cause: schema.Cause{ID: "REQUESTS-9", Type: schema.UserRefreshDue, Source: "/nats", Time: at, Sender: "shop"}},
		},
		"from a sender that may not": {subject: "from.crm.user.refresh_due.propelauth.alice", body: `{}`, malformed: schema.RejectSender},
		"of an unknown provider":     {subject: "user.refresh_due.nobody.alice", body: `{}`, malformed: schema.RejectUnknownProvider},
		"that asks for nonsense":     {subject: "user.refresh_due.propelauth.alice", body: `{"min_valid_seconds":-1}`, malformed: schema.RejectData},
		"that is misspelt":           {subject: "user.refresh_due.propelauth.alice", body: `{"wnat":"tokens"}`, malformed: schema.RejectData},
		"in other letters":           {subject: "user.refresh_due.propelauth.alice", body: `{"Want":"tokens"}`, malformed: schema.RejectData},
		"while nobody leads":         {subject: "user.refresh_due.propelauth.alice", body: `{}`, fails: away},
		"on a subject with no user":  {subject: "user.refresh_due.propelauth", body: `{}`, malformed: schema.RejectSubject},
	} {
		t.Run(name, func(t *testing.T) {
			e := &engine{fails: tt.fails, woken: map[grant.Key]grant.Work{}}
			c := &request.Consumer{Stream: e, Known: func(id string) bool { return id == "propelauth" }, Refuse: func(e schema.Event) error {
				if e.Sender == "crm" {
					return &schema.Malformed{Reason: schema.RejectSender, Field: "sender", Message: "may not"}
				}
				return nil
			}}
			err := c.Handle(t.Context(), &consumers.Message{
				Subject: tt.subject, Data: []byte(tt.body), Stream: "REQUESTS", Sequence: 9, Time: at,
			})
			m, _ := errors.AsType[*schema.Malformed](err)
			switch {
			case tt.want != nil:
				if got, ok := e.woken[alice]; err != nil || !ok || got != *tt.want {
					t.Errorf("woke %+v with %v, want %+v", e.woken, err, *tt.want)
				}
			case tt.fails != nil:
				if !errors.Is(err, tt.fails) || len(e.woken) > 0 {
					t.Errorf("got %v and woke %v, want it to come again", err, e.woken)
				}
			case m == nil || m.Reason != tt.malformed || len(e.woken) > 0:
				t.Errorf("got %v and woke %v, want a rejection for %s", err, e.woken, tt.malformed)
			}
		})
	}
}
