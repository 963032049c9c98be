package postgres

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/renewd/renewd/internal/secret"
)

//go:embed migrations/*.sql
var migrations embed.FS

// versions is the table in which goose notes the applied migrations.
const versions = "renewd.migrations"

var (
	// ErrNewer: the database was migrated by a later renewd. Run that version.
	ErrNewer = errors.New("the database's schema is newer than this renewd")
	// ErrOlder: the database lacks something this renewd needs. Migrate adds it.
	ErrOlder = errors.New("the database's schema is older than this renewd")
)

// Migration is the result of Migrate.
type Migration struct {
	// From and To are the schema's version before and after; 0 before: there was no schema.
	From, To int64
	// Applied are the names of the files, in their order. Empty: nothing was to be done.
	Applied []string
}

// Migrate brings the schema up to date with a role that owns the schema, or may create it. Migrate
// does nothing to a schema that is up to date, and any number of processes may call Migrate at a
// time. A schema of a later version is ErrNewer. Errors never show the address.
func Migrate(ctx context.Context, address secret.Value) (Migration, error) {
	config, err := parse(address, defaultTimeout)
	if err != nil {
		return Migration{}, err
	}
	m, err := migrate(ctx, config.ConnConfig)
	if err != nil {
		return m, fmt.Errorf("migrate database at %s: %w", config.ConnConfig.Host, err)
	}
	return m, nil
}

// migrate brings the schema up to date under a session lock, and refuses a newer schema.
func migrate(ctx context.Context, config *pgx.ConnConfig) (m Migration, err error) {
	db := stdlib.OpenDB(*config)
	defer db.Close()
	// Only where the schema is missing: PostgreSQL asks for the right to create schemas also where
	// IF NOT EXISTS has nothing to do, and the schema's owner need not have this right.
	const look = "SELECT to_regnamespace('renewd') IS NOT NULL"
	var there bool
	if err := db.QueryRowContext(ctx, look).Scan(&there); err != nil {
		return m, err
	}
	if !there {
		_, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS renewd")
		if err != nil && !madeMeanwhile(err) {
			return m, err
		}
	}
	g, newest, err := known(db)
	if err != nil {
		return m, err
	}
	if m.From, err = version(ctx, db); err != nil {
		return m, err
	}
	results, err := g.Up(ctx)
	if err != nil {
		return m, err
	}
	for _, r := range results {
		m.Applied = append(m.Applied, path.Base(r.Source.Path))
	}
	if m.To, err = version(ctx, db); err != nil {
		return m, err
	}
	return m, compare(m.To, newest)
}

// SQLSTATEs of PostgreSQL, appendix A.
const (
	uniqueViolation = "23505"
	duplicateSchema = "42P06"
)

// madeMeanwhile reports whether another process made the schema in the same moment. IF NOT EXISTS
// does not see such a schema, but the catalogue's own index does.
func madeMeanwhile(err error) bool {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (pg.Code == uniqueViolation || pg.Code == duplicateSchema)
}

// check refuses a schema of another version than this program's, and changes nothing.
func check(ctx context.Context, config *pgx.ConnConfig) error {
	db := stdlib.OpenDB(*config)
	defer db.Close()
	_, newest, err := known(db)
	if err != nil {
		return err
	}
	have, err := version(ctx, db)
	if err != nil {
		return err
	}
	return compare(have, newest)
}

// version is the schema's version, 0 without a schema.
func version(ctx context.Context, db *sql.DB) (int64, error) {
	const look = "SELECT to_regclass($1) IS NOT NULL"
	var there bool
	if err := db.QueryRowContext(ctx, look, versions).Scan(&there); err != nil || !there {
		return 0, err
	}
	s, err := database.NewStore(database.DialectPostgres, versions)
	if err != nil {
		return 0, err
	}
	return s.GetLatestVersion(ctx, db)
}

// known are the migrations of this version, and the number of the newest.
func known(db *sql.DB) (*goose.Provider, int64, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, 0, err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, 0, err
	}
	table := goose.WithTableName(versions)
	locked := goose.WithSessionLocker(locker)
	g, err := goose.NewProvider(goose.DialectPostgres, db, files, locked, table)
	if err != nil {
		return nil, 0, err
	}
	sources := g.ListSources()
	return g, sources[len(sources)-1].Version, nil
}

func compare(have, newest int64) error {
	switch {
	case have > newest:
		return fmt.Errorf("%w: it has version %d, this one knows %d", ErrNewer, have, newest)
	case have < newest:
		return fmt.Errorf("%w: it has version %d, this one needs %d", ErrOlder, have, newest)
	}
	return nil
}
