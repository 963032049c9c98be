package appdb

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
)

// ErrDeaf: the database has no notifications.
var ErrDeaf = errors.New("only PostgreSQL notifies")

// Listen calls heard with the payload of each notification on a channel of PostgreSQL, one after
// the other, until ctx ends or the connection does. ready is called once the connection listens:
// earlier notifications are missed. Errors: ErrDeaf, else a *Fault.
func Listen(
	ctx context.Context, d Dialect, channel string, ready func(), heard func(payload string),
) error {
	p, ok := d.(postgres)
	if !ok {
		return ErrDeaf
	}
	conn, err := pgx.ConnectConfig(ctx, p.running())
	if err != nil {
		return FaultOf(d, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // the connection may be broken
	if _, err := conn.Exec(ctx, "LISTEN "+quoted(channel, `"`)); err != nil {
		return FaultOf(d, err)
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return FaultOf(d, err)
		}
		heard(n.Payload)
	}
}
