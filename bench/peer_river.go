package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// riverCommand is River with a job for each user, inserted beforehand.
type riverCommand struct{ peerOptions }

type renewArgs struct {
	ID int64 `json:"id"`
}

// Kind implements river.JobArgs.
func (renewArgs) Kind() string { return "renew" }

type renewWorker struct {
	river.WorkerDefaults[renewArgs]
	db   *pgxpool.Pool
	http *client
	long bool
}

// Work implements river.Worker.
func (w *renewWorker) Work(ctx context.Context, job *river.Job[renewArgs]) error {
	u := dueUser{id: job.Args.ID}
	if err := w.db.QueryRow(
		ctx, "SELECT access_token, refresh_token FROM users WHERE id = $1", u.id,
	).Scan(&u.access, &u.refresh); err != nil {
		return err
	}
	r, err := w.http.exchange(ctx, u.access, u.refresh, w.long)
	if err != nil {
		return err
	}
	_, err = w.db.Exec(ctx, updateUser, u.id, r.access, r.refresh, r.expires, r.profile)
	return err
}

// Run renews all users, then waits to be killed.
func (c riverCommand) Run(ctx context.Context) error {
	db, err := pool(ctx, c.Database, min(48, c.Workers+8))
	if err != nil {
		return err
	}
	driver := riverpgxv5.New(db)
	migrator, err := rivermigrate.New(driver, nil)
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &renewWorker{
		db:   db,
		http: newClient(c.Provider, c.Workers),
		long: c.Long,
	})
	// As shipped, River fetches every 100 ms at most, which alone would limit it to Workers × 10
	// jobs a second.
	r, err := river.NewClient(driver, &river.Config{
		Queues: map[string]river.QueueConfig{
			river.QueueDefault: {MaxWorkers: c.Workers, FetchCooldown: 2 * time.Millisecond},
		},
		Workers: workers, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	const batch = 5000
	for from := 0; from < c.Users; from += batch {
		var jobs []river.InsertManyParams
		for id := from; id < min(from+batch, c.Users); id++ {
			jobs = append(jobs, river.InsertManyParams{Args: renewArgs{int64(id)}})
		}
		if _, err := r.InsertManyFast(ctx, jobs); err != nil {
			return err
		}
	}
	if _, err := db.Exec(ctx, "VACUUM ANALYZE river_job"); err != nil {
		return err
	}
	return race(ctx, func(ctx context.Context) error {
		completed, cancel := r.SubscribeConfig(&river.SubscribeConfig{
			ChanSize: c.Users,
			Kinds:    []river.EventKind{river.EventKindJobCompleted},
		})
		defer cancel()
		if err := r.Start(ctx); err != nil {
			return err
		}
		for range c.Users {
			select {
			case <-completed:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
}
