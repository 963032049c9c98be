package request_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/renewd/renewd/consumers/request"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

// engine keeps what is asked for.
type engine struct {
	fails error
	woken map[grant.Key]grant.Work
	order []grant.Work
}

func (e *engine) Request(_ context.Context, k grant.Key, w grant.Work) error {
	if e.fails == nil {
		e.woken[k] = w
		e.order = append(e.order, w)
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
		deliveries    uint64
		want          *grant.Work
		malformed     string // the reason of a rejection
	}{
		"for what it wants": {
			subject: "user.refresh_due.propelauth.alice=40example=2Eorg",
			body:    `{"want":"tokens","min_valid_seconds":60,"reason":"checkout"}`,
			want: &grant.Work{
				Want:     "tokens",
				MinValid: time.Minute,
				Cause: schema.Cause{
					ID:     "REQUESTS-9",
					Type:   schema.UserRefreshDue,
					Source: "/nats",
					Time:   at,
					Reason: "checkout",
				},
			},
		},
		"from a sender": {
			subject: "from.shop.user.refresh_due.propelauth.alice=40example=2Eorg", body: `{}`,
			want: &grant.Work{
				Cause: schema.Cause{
					ID:     "REQUESTS-9",
					Type:   schema.UserRefreshDue,
					Source: "/nats",
					Time:   at,
					Sender: "shop",
				},
			},
		},
		"delivered again": {
			subject: "user.refresh_due.propelauth.alice=40example=2Eorg", body: `{}`, deliveries: 2,
			want: &grant.Work{
				Again: true,
				Cause: schema.Cause{
					ID:     "REQUESTS-9",
					Type:   schema.UserRefreshDue,
					Source: "/nats",
					Time:   at,
				},
			},
		},
		"from a sender that may not": {
			subject:   "from.crm.user.refresh_due.propelauth.alice",
			body:      `{}`,
			malformed: schema.RejectSender,
		},
		"of an unknown provider": {
			subject:   "user.refresh_due.nobody.alice",
			body:      `{}`,
			malformed: schema.RejectUnknownProvider,
		},
		"that asks for nonsense": {
			subject:   "user.refresh_due.propelauth.alice",
			body:      `{"min_valid_seconds":-1}`,
			malformed: schema.RejectData,
		},
		"that is misspelt": {
			subject:   "user.refresh_due.propelauth.alice",
			body:      `{"wnat":"tokens"}`,
			malformed: schema.RejectData,
		},
		"in other letters": {
			subject:   "user.refresh_due.propelauth.alice",
			body:      `{"Want":"tokens"}`,
			malformed: schema.RejectData,
		},
		"while nobody leads": {
			subject: "user.refresh_due.propelauth.alice",
			body:    `{}`,
			fails:   away,
		},
		"on a subject with no user": {
			subject:   "user.refresh_due.propelauth",
			body:      `{}`,
			malformed: schema.RejectSubject,
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := &engine{fails: tt.fails, woken: map[grant.Key]grant.Work{}}
			known := func(id string) bool { return id == "propelauth" }
			refuse := func(e schema.Event) error {
				if e.Sender == "crm" {
					return &schema.Malformed{
						Reason:  schema.RejectSender,
						Field:   "sender",
						Message: "may not",
					}
				}
				return nil
			}
			c := &request.Consumer{Stream: e, Known: known, Refuse: refuse}
			err := c.Handle(t.Context(), &runner.Message{
				Subject:    tt.subject,
				Data:       []byte(tt.body),
				Stream:     "REQUESTS",
				Sequence:   9,
				Time:       at,
				Deliveries: tt.deliveries,
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

// One sender floods: of its requests as many as its rate lets in wait before another sender's, and
// each of the rest is rejected at once, for the sender's own fault. An error of Admit that says
// nothing of the request has it come again.
func TestAFloodOfOneSenderDelaysNoOther(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	gate := senders.NewGate(senders.List{"shop": {Rate: 10, Burst: 20}},
		func() time.Time { return now }, nil)
	e := &engine{woken: map[grant.Key]grant.Work{}}
	var away error
	known := func(string) bool { return true }
	admit := func(ctx context.Context, m *runner.Message, e schema.Event) error {
		return errors.Join(away, gate.Admit(ctx, e, m.Deliveries, nil))
	}
	c := &request.Consumer{Stream: e, Known: known, Admit: admit}
	rejected := 0
	send := func(sender string, n int) error {
		return c.Handle(t.Context(), &runner.Message{
			Subject:    fmt.Sprintf("from.%s.user.refresh_due.acme.u%d", sender, n),
			Stream:     "REQUESTS",
			Sequence:   uint64(n),
			Time:       now,
			Deliveries: 1,
		})
	}
	for n := range 5000 {
		m, ok := errors.AsType[*schema.Malformed](send("shop", n))
		if ok && m.Reason == schema.RejectSenderRate {
			rejected++
		}
	}
	if err := send("crm", 5000); err != nil {
		t.Fatal(err)
	}
	last := len(e.order) - 1
	if last != 20 || e.order[last].Cause.Sender != "crm" || rejected != 4980 {
		t.Errorf("%d requests before the other sender's, %d rejected, want 20 and 4980",
			last, rejected)
	}
	away = errors.New("no leader")
	if err := send("crm", 5001); !errors.Is(err, away) || len(e.order) != 21 {
		t.Errorf("%v: %d woken", err, len(e.order))
	}
}
