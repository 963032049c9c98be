package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// limitCommand is the least work of any renewer: the same calls, with net/http or a leaner client,
// and the same rows, written in batches. No queue, no claim, no event; all users in memory.
type limitCommand struct {
	peerOptions
	NoStore bool `help:"Only the calls."`
	Lean    bool `help:"With fasthttp."`
}

const limitBatch = 50

const updateUsers = `UPDATE users u
	SET access_token = r.access, refresh_token = r.refresh, expires_at = r.expires,
		refresh_at = r.expires - interval '5 minutes', claimed_until = NULL, profile = r.profile,
		updated_at = now()
	FROM unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[], $5::jsonb[])
		AS r(id, access, refresh, expires, profile)
	WHERE u.id = r.id`

type renewedUser struct {
	id int64
	renewed
}

// Run renews all users, then waits to be killed.
func (c limitCommand) Run(ctx context.Context) error {
	const writers = 4
	db, err := pool(ctx, c.Database, writers)
	if err != nil {
		return err
	}
	users, err := everyUser(ctx, db)
	if err != nil {
		return err
	}
	client := newClient(c.Provider, c.Workers)
	if c.Lean {
		client = newLeanClient(c.Provider, c.Workers)
	}
	return race(ctx, func(ctx context.Context) error {
		todo, done := make(chan dueUser, len(users)), make(chan renewedUser, limitBatch*writers)
		for _, u := range users {
			todo <- u
		}
		close(todo)
		g, ctx := errgroup.WithContext(ctx)
		calls, within := errgroup.WithContext(ctx)
		for range c.Workers {
			calls.Go(func() error {
				for u := range todo {
					r, err := client.exchange(within, u.access, u.refresh, c.Long)
					if err != nil {
						return err
					}
					done <- renewedUser{u.id, r}
				}
				return nil
			})
		}
		g.Go(func() error { defer close(done); return calls.Wait() })
		for range writers {
			g.Go(func() error { return c.write(ctx, db, done) })
		}
		return g.Wait()
	})
}

func everyUser(ctx context.Context, db *pgxpool.Pool) (users []dueUser, err error) {
	rows, err := db.Query(ctx, "SELECT id, access_token, refresh_token FROM users ORDER BY id")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var u dueUser
		if err := rows.Scan(&u.id, &u.access, &u.refresh); err != nil {
			return nil, err
		}
		users = append(users, u)
	}
	return users, rows.Err()
}

// write stores renewed users, up to limitBatch rows a statement.
func (c limitCommand) write(ctx context.Context, db *pgxpool.Pool, done <-chan renewedUser) error {
	for {
		var ids []int64
		var access, refresh []string
		var expires []time.Time
		var profiles [][]byte
		for r := range done {
			ids, access, refresh = append(ids, r.id), append(access, r.access),
				append(refresh, r.refresh)
			expires, profiles = append(expires, r.expires), append(profiles, r.profile)
			if len(ids) == limitBatch {
				break
			}
		}
		if len(ids) == 0 {
			return nil
		}
		if c.NoStore {
			continue
		}
		if _, err := db.Exec(
			ctx, updateUsers, ids, access, refresh, expires, profiles,
		); err != nil {
			return err
		}
	}
}
