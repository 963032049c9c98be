package tokens

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// NATS is the Asker of a running renewd. Safe for concurrent use.
type NATS struct {
	Conn     *nats.Conn
	Subjects schema.Subjects
	// Request makes a grant due now for a command, as the consumer of user.refresh_due does for a
	// command from the stream: stream.Engine has it.
	Request func(ctx context.Context, k grant.Key, w grant.Work) error
}

// Ask implements Asker: the outcome that answers w is awaited as by any service.
//
// The request goes straight to the waiting renewals, past the stream of requests. That stream would
// only add the check of the sender, which here is renewd itself.
func (n NATS) Ask(ctx context.Context, k grant.Key, w grant.Work) error {
	whom := consumers.Whom{
		Prefix: n.Subjects.Prefix(), Provider: k.Provider, User: k.User, Sender: w.Cause.Sender,
	}
	ask := func(ctx context.Context) (source, id string, err error) {
		return w.Cause.Source, w.Cause.ID, n.Request(ctx, k, w)
	}
	if _, err := consumers.Await(ctx, n.Conn, whom, ask); err != nil {
		return fmt.Errorf("ask for a renewal of %s: %w", k, err)
	}
	return nil
}
