package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/exaring/otelpgx"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/trace"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
)

// Config is a Store's settings.
type Config struct {
	// URL is a connection string or URL as libpq takes it. The URL may hold a password and is never
	// logged.
	URL    secret.Value
	Cipher grant.Cipher
	// MaxConns is the most connections. Default 16, at least 4.
	MaxConns int
	// Tracers records statements, without their parameters. nil: none.
	Tracers trace.TracerProvider
	// Timeout of one statement. Default 10 s.
	Timeout time.Duration
	// Migrated leaves the schema unchanged: Open only checks its version, so the URL's role needs
	// no right but to read and write rows. Default: Open brings the schema up to date.
	Migrated bool
	// SealProfiles keeps profiles encrypted, with the tokens. A profile stored in the other form is
	// read, and takes this form with its next save.
	SealProfiles bool
	// RequireBound reads only bound records, which only renewd can have written. Default: records
	// of versions without bound records are read too. See grant.Digest.
	RequireBound bool
}

// Store is a grant.Store.
type Store struct {
	pool    *pgxpool.Pool
	cipher  grant.Cipher
	private bool // profiles are sealed
	bound   bool // only bound records are read
	timeout time.Duration
	loads   batcher[grant.Key, *row]
	claims  batcher[claim, claimed]
	saves   batcher[*row, error]
}

var _ grant.Store = (*Store)(nil)

// Open connects and brings the schema up to date, or only checks the schema if c.Migrated is set.
// Any number of processes may call Open at a time. Errors: ErrNewer, and with c.Migrated also
// ErrOlder. Errors never show the URL.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	config, err := parse(c.URL, c.Timeout)
	if err != nil {
		return nil, err
	}
	if c.MaxConns == 0 {
		c.MaxConns = 16
	}
	config.MaxConns = int32(max(4, min(c.MaxConns, 1000)))
	if c.Tracers != nil {
		config.ConnConfig.Tracer = otelpgx.NewTracer(otelpgx.WithTracerProvider(c.Tracers))
	}
	if err := prepare(ctx, config.ConnConfig, c.Migrated); err != nil {
		return nil, fmt.Errorf("open database at %s: %w", config.ConnConfig.Host, err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database at %s: %w", config.ConnConfig.Host, err)
	}
	s := &Store{
		pool:    pool,
		cipher:  c.Cipher,
		private: c.SealProfiles,
		bound:   c.RequireBound,
		timeout: c.Timeout,
	}
	// One statement of a kind at a time: calls that arrive meanwhile share the next statement, and
	// a statement costs nearly the same whatever it carries. Saves have a second statement, since
	// an unsaved pair is lost if its process dies.
	const statements, saves = 1, 2
	s.loads = batcher[grant.Key, *row]{
		most: batchMost,
		key:  func(k grant.Key) grant.Key { return k },
		run:  s.runLoads,
		free: statements,
	}
	s.claims = batcher[claim, claimed]{
		most: batchMost,
		key:  func(c claim) grant.Key { return c.key },
		run:  s.runClaims,
		free: statements,
	}
	s.saves = batcher[*row, error]{
		most: batchMost,
		key:  func(r *row) grant.Key { return r.key },
		run:  s.runSaves,
		free: saves,
	}
	return s, nil
}

const defaultTimeout = 10 * time.Second

// parse reads an address. Its error does not repeat the address, as pgx's own would.
func parse(address secret.Value, timeout time.Duration) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(address.Reveal())
	if err != nil {
		return nil, errors.New("database_url: not a PostgreSQL URL: want " +
			"postgres://user:password@host:5432/database")
	}
	config.ConnConfig.ConnectTimeout = timeout
	return config, nil
}

// prepare gets the schema into the form this version needs.
func prepare(ctx context.Context, config *pgx.ConnConfig, migrated bool) error {
	if migrated {
		return check(ctx, config)
	}
	_, err := migrate(ctx, config)
	return err
}

// batchMost is the most rows in one statement. More than a few hundred gain nothing.
const batchMost = 256

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
		g, err = s.grantOf(r)
	}
	if err != nil {
		return g, fmt.Errorf("load grant %s: %w", k, err)
	}
	return g, nil
}

// Claim implements grant.Store. Only a claimed record shows whether it can be read. The claim on an
// unreadable record is given back.
func (s *Store) Claim(
	ctx context.Context, k grant.Key, r grant.ClaimRequest,
) (grant.Grant, *grant.Claim, error) {
	g := grant.Grant{Key: k}
	var prior *grant.Claim
	c, err := s.claims.do(ctx, claim{k, r})
	if err == nil {
		g, prior, err = s.claimedOf(c)
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
	row, err := s.rowOf(g)
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
	tag, err := s.pool.Exec(ctx,
		"DELETE FROM renewd.grants WHERE provider = $1 AND user_id = $2 AND revision = $3",
		k.Provider, k.User, int64(revision))
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
		return fmt.Errorf("re-seal grant %s: %w", k, told(err))
	}
	return nil
}

const resealSQL = `UPDATE renewd.grants SET
		revision = revision + 1, tokens = $4, state = $5::text::json
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
	was := r.beside(s.bound)
	if !r.bound() {
		if err := r.bind(); err != nil {
			return err
		}
	}
	sealed, err := grant.ResealTokens(s.cipher, k, r.version, r.tokens, was, r.digest())
	if err != nil {
		return err
	}
	tag, err := s.pool.Exec(ctx, resealSQL, k.Provider, k.User, revision, sealed, r.state)
	if err == nil && tag.RowsAffected() == 0 {
		err = grant.ErrConflict
	}
	return err
}
