package main

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// databaseWork is what a run cost PostgreSQL.
type databaseWork struct {
	Commits int64 `json:"commits"`
	WAL     int64 `json:"wal_bytes"`
	Flushes int64 `json:"wal_flushes"` // fsyncs of the log
	Seq     int64 `json:"rows_scanned"`
	Rows    int64 `json:"rows_updated"`
	HOT     int64 `json:"rows_updated_in_place"` // without touching an index
}

// work is what database has cost so far. The log is the whole server's: nothing else may run on it.
func (b *bench) work(ctx context.Context, database string) (w databaseWork, err error) {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return w, err
	}
	defer conn.Close(ctx)
	return w, conn.QueryRow(ctx, `SELECT d.xact_commit, l.wal_bytes::bigint, l.wal_sync, t.seq, t.upd, t.hot
		FROM pg_stat_wal l, pg_stat_database d, (SELECT coalesce(sum(seq_tup_read), 0)::bigint AS seq, coalesce(sum(n_tup_upd), 0)::bigint AS upd,
			coalesce(sum(n_tup_hot_upd), 0)::bigint AS hot FROM pg_stat_user_tables) t WHERE d.datname = current_database()`).
		Scan(&w.Commits, &w.WAL, &w.Flushes, &w.Seq, &w.Rows, &w.HOT)
}

func (w databaseWork) since(before databaseWork) databaseWork {
	return databaseWork{w.Commits - before.Commits, w.WAL - before.WAL, w.Flushes - before.Flushes, w.Seq - before.Seq, w.Rows - before.Rows, w.HOT - before.HOT}
}
