// Package request is the consumer of user.refresh_due: it checks a request and turns it into a wake of the grant's
// renewal.
//
// It makes no call to a provider or a store, so a request never waits behind one; whether the user has a grant is for the
// refresh consumer to say. Waking a grant takes its timer away, so what the timer knew of the grant's record goes into the
// wake. A Consumer is safe for concurrent use.
package request

import (
	"context"
	"fmt"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Waker makes a grant due now, for the given work. Waking twice is one renewal.
type Waker interface {
	// TimerMark is the mark of the record that the grant's timer was set from; zero if it has none.
	TimerMark(ctx context.Context, k grant.Key) (grant.Mark, error)
	Wake(ctx context.Context, k grant.Key, w grant.Work) error
}

// Consumer handles requests.
type Consumer struct {
	Subjects schema.Subjects
	Stream   Waker
	// Known reports whether a provider is in the settings; a request for any other is rejected.
	Known func(provider string) bool
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
	data, err := schema.Data[schema.RefreshDue](e)
	if err != nil {
		return consumers.Reject(err)
	}
	key := grant.Key{Provider: e.Provider, User: e.User}
	mark, err := c.Stream.TimerMark(ctx, key)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	w := grant.Work{
		Cause:    schema.Cause{ID: e.ID, Type: e.Type, Source: e.Source, Time: e.Time, Reason: data.Reason},
		Want:     data.Want,
		MinValid: time.Duration(data.MinValidSeconds) * time.Second,
		Mark:     mark,
	}
	if err := c.Stream.Wake(ctx, key, w); err != nil {
		return consumers.Retry(err, time.Second)
	}
	return nil
}
