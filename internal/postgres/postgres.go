package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"go.opentelemetry.io/otel/trace"

	"github.com/renewd/renewd/internal/grant"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config is what a Store stands on.
type Config struct {
	// URL is a connection string or URL as libpq takes it. It may hold a password and is never
	// logged.
	URL    grant.Secret
	Cipher grant.Cipher
	// MaxConns is the most connections. Default 16, at least 4.
	MaxConns int
	// Tracers records statements, without their parameters. nil: none.
	Tracers trace.TracerProvider
	// Timeout of one statement. Default 10 s.
	Timeout time.Duration
}

// Store is a grant.Store.
type Store struct {
	pool    *pgxpool.Pool
	cipher  grant.Cipher
	timeout time.Duration
	loads   batcher[grant.Key, *row]
	claims  batcher[claim, claimed]
	saves   batcher[*row, error]
}

var _ grant.Store = (*Store)(nil)

// ErrNewer: the database was migrated by a later renewd. Run that version.
var ErrNewer = errors.New("the database's schema is newer than this renewd")

// Open connects and brings the schema up to date; any number of processes may do so at a time. Its
// errors never show the URL.
func Open(ctx context.Context, c Config) (*Store, error) {
	config, err := pgxpool.ParseConfig(c.URL.Reveal())
	if err != nil {
		return nil, errors.New("database_url: not a PostgreSQL URL: want postgres://user:password@host:5432/database")
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.MaxConns == 0 {
		c.MaxConns = 16
	}
	config.MaxConns = int32(max(4, min(c.MaxConns, 1000)))
	config.ConnConfig.ConnectTimeout = c.Timeout
	if c.Tracers != nil {
		config.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(c.Tracers))
	}
	if err := migrate(ctx, config.ConnConfig); err != nil {
		return nil, fmt.Errorf("open database at %s: %w", config.ConnConfig.Host, err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database at %s: %w", config.ConnConfig.Host, err)
	}
	s := &Store{pool: pool, cipher: c.Cipher, timeout: c.Timeout}
	// One of a kind at a time: what comes meanwhile shares the next statement, and a statement
	// costs nearly the same whatever it carries. Saves have a second one, since a pair is lost with
	// its process until it is saved.
	const statements, saves = 1, 2
	s.loads = batcher[grant.Key, *row]{most: batchMost, key: func(k grant.Key) grant.Key { return k }, run: s.runLoads, free: statements}
	s.claims = batcher[claim, claimed]{most: batchMost, key: func(c claim) grant.Key { return c.key }, run: s.runClaims, free: statements}
	s.saves = batcher[*row, error]{most: batchMost, key: func(r *row) grant.Key { return r.key }, run: s.runSaves, free: saves}
	return s, nil
}

// batchMost is the most rows in one statement: past a few hundred nothing more is gained.
const batchMost = 256

// migrate brings the schema up to date under a session lock, and refuses a newer one.
func migrate(ctx context.Context, config *pgx.ConnConfig) error {
	db := stdlib.OpenDB(*config)
	defer db.Close()
	if _, err := db.ExecContext(ctx, "CREATE SCHEMA IF NOT EXISTS renewd"); err != nil {
		return err
	}
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return err
	}
	g, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithSessionLocker(locker), goose.WithTableName("renewd.migrations"))
	if err != nil {
		return err
	}
	if _, err := g.Up(ctx); err != nil {
		return err
	}
	have, err := g.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	if known := g.ListSources(); have > known[len(known)-1].Version {
		return fmt.Errorf("%w: it has version %d, this one knows %d", ErrNewer, have, known[len(known)-1].Version)
	}
	return nil
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.pool.Ping(ctx) }

// Close waits for the statements under way and closes the connections.
func (s *Store) Close() {
	s.loads.close()
	s.claims.close()
	s.saves.close()
	s.pool.Close()
}

// Load implements grant.Store.
func (s *Store) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	g := grant.Grant{Key: k}
	r, err := s.loads.do(ctx, k)
	switch {
	case err != nil:
	case r == nil:
		err = grant.ErrNotFound
	default:
		g, err = r.grant(s.cipher)
	}
	if err != nil {
		return g, fmt.Errorf("load grant %s: %w", k, err)
	}
	return g, nil
}

// Claim implements grant.Store. Whether a record can be read shows only once it is claimed: then
// the claim is given back.
func (s *Store) Claim(ctx context.Context, k grant.Key, r grant.ClaimRequest) (grant.Grant, *grant.Claim, error) {
	g := grant.Grant{Key: k}
	var prior *grant.Claim
	c, err := s.claims.do(ctx, claim{k, r})
	if err == nil {
		g, prior, err = c.grant(s.cipher)
	}
	if errors.Is(err, grant.ErrUnreadable) {
		prior = nil
		if lost := s.unclaim(ctx, &g, r.Nonce, c.prior); lost != nil {
			err = fmt.Errorf("give back the claim on a record that cannot be read: %w", lost)
		}
	}
	if err != nil {
		return g, nil, fmt.Errorf("claim grant %s: %w", k, err)
	}
	return g, prior, nil
}

// Save implements grant.Store.
func (s *Store) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	row, err := rowOf(s.cipher, g)
	if err == nil {
		var refused error
		if refused, err = s.saves.do(ctx, row); err == nil {
			err = refused
		}
	}
	if err != nil {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, err)
	}
	return uint64(row.revision), nil
}

// Delete implements grant.Store.
func (s *Store) Delete(ctx context.Context, k grant.Key, revision uint64) error {
	tag, err := s.pool.Exec(ctx, "DELETE FROM renewd.grants WHERE provider = $1 AND user_id = $2 AND revision = $3", k.Provider, k.User, int64(revision))
	if err == nil && tag.RowsAffected() == 0 {
		var r *row
		switch r, err = s.loads.do(ctx, k); {
		case err != nil:
		case r == nil:
			err = grant.ErrNotFound
		default:
			err = grant.ErrConflict
		}
	}
	if err = told(err); err != nil {
		return fmt.Errorf("delete grant %s: %w", k, err)
	}
	return nil
}

// Reseal implements grant.Store.
func (s *Store) Reseal(ctx context.Context, k grant.Key, revision uint64) error {
	if err := s.reseal(ctx, k, int64(revision)); err != nil {
		return fmt.Errorf("seal grant %s anew: %w", k, told(err))
	}
	return nil
}

const resealSQL = `UPDATE renewd.grants SET revision = revision + 1, tokens = $4
	WHERE provider = $1 AND user_id = $2 AND revision = $3`

func (s *Store) reseal(ctx context.Context, k grant.Key, revision int64) error {
	r, err := s.loads.do(ctx, k)
	switch {
	case err != nil:
		return err
	case r == nil:
		return grant.ErrNotFound
	case r.revision != revision:
		return grant.ErrConflict
	}
	sealed, err := grant.ResealTokens(s.cipher, k, r.version, r.tokens)
	if err != nil {
		return err
	}
	tag, err := s.pool.Exec(ctx, resealSQL, k.Provider, k.User, revision, sealed)
	if err == nil && tag.RowsAffected() == 0 {
		err = grant.ErrConflict
	}
	return err
}
