// Package request is the consumer of user.refresh_due: it checks a request and turns the request
// into a wake of the grant's renewal.
//
// No provider or store is called, so a request never waits behind such a call. The refresh consumer
// finds out whether the user has a grant. Requests of one user become one renewal, which does the
// most that any request wants and keeps the place of the first in the queue.
//
// Of more than eight requests of a user and sender that no worker has looked at, the stream drops
// the oldest. A Consumer is safe for concurrent use.
package request

import (
	"context"
	"fmt"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// Stream is the engine.
type Stream interface {
	// Request makes a grant due now for a command, and for everything the waiting work wants.
	Request(ctx context.Context, k grant.Key, w grant.Work) error
}

// Consumer handles requests.
type Consumer struct {
	Subjects schema.Subjects
	Stream   Stream
	// Known reports whether a provider is in the settings; a request for any other is rejected.
	Known func(provider string) bool
	// Refuse says why the sender may not publish a request, nil if it may. Default: each may.
	Refuse func(schema.Event) error
	// Admit says why a permitted request is not let in now: a *schema.Malformed, or an error that
	// another try may end. Default: each is let in.
	Admit func(context.Context, *runner.Message, schema.Event) error
}

// Handle wakes the grant of one request. The error is a verdict of package runner.
func (c *Consumer) Handle(ctx context.Context, m *runner.Message) error {
	e, err := c.Subjects.Decode(m.Header, m.Data, schema.Arrival{
		Subject:  m.Subject,
		Stream:   m.Stream,
		Sequence: m.Sequence,
		Time:     m.Time,
	})
	if err != nil {
		return runner.Reject(err)
	}
	if !c.Known(e.Provider) {
		return runner.Reject(&schema.Malformed{
			Reason:  schema.RejectUnknownProvider,
			Field:   "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", e.Provider),
		})
	}
	if c.Refuse != nil {
		if err := c.Refuse(e); err != nil {
			return runner.Reject(err)
		}
	}
	if c.Admit != nil {
		if err := c.Admit(ctx, m, e); err != nil {
			return runner.Refused(err)
		}
	}
	data, err := schema.Data[schema.RefreshDue](e)
	if err != nil {
		return runner.Reject(err)
	}
	w := grant.Work{
		Cause: schema.Cause{
			ID:     e.ID,
			Type:   e.Type,
			Source: e.Source,
			Time:   e.Time,
			Reason: data.Reason,
			Sender: e.Sender,
		},
		Want:     data.Want,
		MinValid: time.Duration(data.MinValidSeconds) * time.Second,
		Again:    m.Deliveries > 1, // the delivery before may have woken the grant
	}
	if err := c.Stream.Request(ctx, grant.Key{Provider: e.Provider, User: e.User}, w); err != nil {
		return runner.Retry(err, time.Second)
	}
	return nil
}
