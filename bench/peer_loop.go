package main

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// loopCommand is the code of a decent team. Workers claim due rows of a table in batches, so that a
// second process may do the same, and update each user after its renewal.
type loopCommand struct{ peerOptions }

const claimUsers = `UPDATE users SET claimed_until = now() + interval '30 seconds' WHERE id IN (
	SELECT id FROM users
	WHERE refresh_at <= now() AND (claimed_until IS NULL OR claimed_until < now())
	ORDER BY refresh_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING id, access_token, refresh_token`

type dueUser struct {
	id              int64
	access, refresh string
}

// Run renews all users, then waits to be killed.
func (c loopCommand) Run(ctx context.Context) error {
	db, err := pool(ctx, c.Database, min(32, c.Workers))
	if err != nil {
		return err
	}
	http := newClient(c.Provider, c.Workers)
	return race(ctx, func(ctx context.Context) error {
		var done atomic.Int64
		due := make(chan dueUser, c.Workers)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error {
			defer close(due)
			for done.Load() < int64(c.Users) {
				rows, err := db.Query(ctx, claimUsers, 2*c.Workers)
				if err != nil {
					return err
				}
				n := 0
				for ; rows.Next(); n++ {
					var u dueUser
					if err := rows.Scan(&u.id, &u.access, &u.refresh); err != nil {
						return err
					}
					due <- u
				}
				if err := rows.Err(); err != nil {
					return err
				}
				if n == 0 {
					<-time.After(5 * time.Millisecond)
				}
			}
			return nil
		})
		for range c.Workers {
			g.Go(func() error {
				for u := range due {
					r, err := http.exchange(ctx, u.access, u.refresh, c.Long)
					if err != nil {
						return err
					}
					if _, err := db.Exec(
						ctx, updateUser, u.id, r.access, r.refresh, r.expires, r.profile,
					); err != nil {
						return err
					}
					done.Add(1)
				}
				return nil
			})
		}
		return g.Wait()
	})
}
