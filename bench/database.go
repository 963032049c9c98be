package main

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// databaseWork is PostgreSQL's work for a run.
type databaseWork struct {
	Commits int64 `json:"commits"`
	WAL     int64 `json:"wal_bytes"`
	Flushes int64 `json:"wal_flushes"` // fsyncs of the log
	Seq     int64 `json:"rows_scanned"`
	Rows    int64 `json:"rows_updated"`
	HOT     int64 `json:"rows_updated_in_place"` // without touching an index
}

// work reads the counters of database so far. The log belongs to the whole server, so no other work
// may run on that server.
func (b *bench) work(ctx context.Context, database string) (w databaseWork, err error) {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return w, err
	}
	defer conn.Close(ctx)
	const counters = `SELECT d.xact_commit, l.wal_bytes::bigint, l.wal_sync, t.seq, t.upd, t.hot
		FROM pg_stat_wal l, pg_stat_database d, (
			SELECT coalesce(sum(seq_tup_read), 0)::bigint AS seq,
				coalesce(sum(n_tup_upd), 0)::bigint AS upd,
				coalesce(sum(n_tup_hot_upd), 0)::bigint AS hot
			FROM pg_stat_user_tables) t
		WHERE d.datname = current_database()`
	err = conn.QueryRow(ctx, counters).
		Scan(&w.Commits, &w.WAL, &w.Flushes, &w.Seq, &w.Rows, &w.HOT)
	return w, err
}

func (w databaseWork) since(before databaseWork) databaseWork {
	return databaseWork{
		Commits: w.Commits - before.Commits,
		WAL:     w.WAL - before.WAL,
		Flushes: w.Flushes - before.Flushes,
		Seq:     w.Seq - before.Seq,
		Rows:    w.Rows - before.Rows,
		HOT:     w.HOT - before.HOT,
	}
}
