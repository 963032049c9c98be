package api

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// SourceOf is the source of the events of a client.
func SourceOf(client string) string { return "/clients/" + client }

// NATS is the Commands and the Outcomes of a running renewd. Safe for concurrent use.
type NATS struct {
	conn     *nats.Conn
	subjects schema.Subjects
	now      func() time.Time

	mu         sync.Mutex
	publishers map[string]*publishers.Publisher // by client
}

// NewNATS publishes and reads over a connection. now is the NATS server's time, by which logins are
// dated.
func NewNATS(conn *nats.Conn, subjects schema.Subjects, now func() time.Time) *NATS {
	return &NATS{
		conn: conn, subjects: subjects, now: now,
		publishers: map[string]*publishers.Publisher{},
	}
}

// As implements Commands.
func (n *NATS) As(client string) (*publishers.Publisher, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.publishers[client]; p != nil {
		return p, nil
	}
	p, err := publishers.New(
		n.conn,
		publishers.WithPrefix(n.subjects.Prefix()),
		publishers.WithSource(SourceOf(client)),
		publishers.WithClock(n.now),
	)
	if err == nil {
		n.publishers[client] = p
	}
	return p, err
}

// options are the options of each command: its sender, and its id if the caller gave an id.
func options(id string) []publishers.EventOption {
	all := []publishers.EventOption{func(e *schema.Event) { e.Sender = senders.HTTP }}
	if id != "" {
		all = append(all, publishers.WithID(id))
	}
	return all
}

// Await implements Commands.
func (n *NATS) Await(
	ctx context.Context, k grant.Key, publish func(context.Context) (publishers.Receipt, error),
) (schema.Event, error) {
	whom := consumers.Whom{
		Prefix: n.subjects.Prefix(), Provider: k.Provider, User: k.User, Sender: senders.HTTP,
	}
	return consumers.Await(ctx, n.conn, whom, func(ctx context.Context) (string, string, error) {
		r, err := publish(ctx)
		return r.Source, r.ID, err
	})
}

// Replay implements Outcomes.
func (n *NATS) Replay(ctx context.Context, q consumers.Query) iter.Seq2[schema.Event, error] {
	q.Prefix = n.subjects.Prefix()
	return consumers.Replay(ctx, n.conn, q)
}
