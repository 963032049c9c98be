// Package request is the consumer of user.refresh_due: it checks a request and turns it into a wake
// of the grant's renewal.
//
// It makes no call to a provider or a store, so a request never waits behind one; whether the user
// has a grant is for the refresh consumer to say. Requests of one user become one renewal, which
// does the most that any of them wants and keeps the place of the first in the queue. A newer
// request replaces one of the same user that nobody has looked at, before anybody has read either:
// what a malformed one replaced is lost, and its rejection says so. A Consumer is safe for
// concurrent use.
package request

import (
	"context"
	"fmt"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Stream is the engine.
type Stream interface {
	// Request makes a grant due now for a command, and for all that what waits for it wants.
	Request(ctx context.Context, k grant.Key, w grant.Work) error
}

// Consumer handles requests.
type Consumer struct {
	Subjects schema.Subjects
	Stream   Stream
	// Known reports whether a provider is in the settings; a request for any other is rejected.
	Known func(provider string) bool
	// Refuse says why its sender may not publish a request, nil if it may. Default: each may.
	Refuse func(schema.Event) error
}

// Handle wakes the grant of one request. Its error is a verdict of package consumers.
func (c *Consumer) Handle(ctx context.Context, m *consumers.Message) error {
	e, err := c.Subjects.Decode(m.Header, m.Data, schema.Arrival{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time})
	if err != nil {
		return consumers.Reject(err)
	}
	if !c.Known(e.Provider) {
		return consumers.Reject(&schema.Malformed{Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings", e.Provider)})
	}
	if c.Refuse != nil {
		if err := c.Refuse(e); err != nil {
			return consumers.Reject(err)
		}
	}
	data, err := schema.Data[schema.RefreshDue](e)
	if err != nil {
		return consumers.Reject(err)
	}
	w := grant.Work{
		Cause: schema.Cause{
			ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time, Reason: data.Reason, Sender: e.Sender,
		},
		Want:     data.Want,
		MinValid: time.Duration(data.MinValidSeconds) * time.Second,
	}
	if err := c.Stream.Request(ctx, grant.Key{Provider: e.Provider, User: e.User}, w); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
