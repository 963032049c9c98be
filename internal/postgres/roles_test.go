package postgres_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

// roles are the addresses of one database: of a superuser, and of the two roles that
// deploy/postgres/roles.sql makes.
type roles struct{ admin, owner, worker string }

// shipped keeps two tests from making the roles at the same time: they belong to the whole server.
var shipped sync.Mutex

// give runs the shipped SQL in a database.
func give(t *testing.T, url string) roles {
	t.Helper()
	shipped.Lock()
	defer shipped.Unlock()
	databases.Script(t, url, "../../deploy/postgres/roles.sql")
	return roles{url, pgtest.As("renewd_owner", url), pgtest.As("renewd_worker", url)}
}

// migrated is a database with the shipped roles, and the tables that `renewd migrate` makes.
func migrated(t *testing.T) roles {
	t.Helper()
	r := give(t, databases.URL(t))
	if _, err := postgres.Migrate(t.Context(), secret.New(r.owner)); err != nil {
		t.Fatal(err)
	}
	return r
}

func workerConfig(url string) postgres.Config {
	return postgres.Config{URL: secret.New(url), Cipher: storetest.Cipher{}, Migrated: true}
}

func openMigrated(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), workerConfig(url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// The worker's role can do all that a store does.
func TestStoreAsWorker(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		r := migrated(t)
		f := fixture(t, r.admin) // it damages and looks at rows
		f.Store = openMigrated(t, r.worker)
		return f
	})
}

// statement runs one statement as a role, and returns how PostgreSQL refused it.
func statement(t *testing.T, url, sql string) error {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	_, err = conn.Exec(t.Context(), sql)
	return err
}

func TestWorkerMayNotChangeTheSchema(t *testing.T) {
	r := migrated(t)
	exec(t, r.owner, "CREATE TABLE renewd.later (id int)") // as a later migration would
	exec(t, r.worker, "INSERT INTO renewd.later VALUES (1)")
	const forbidden = "42501"
	for _, sql := range []string{
		"CREATE TABLE renewd.mine (id int)",
		"CREATE TABLE public.mine (id int)",
		"CREATE INDEX ON renewd.grants (status)",
		"CREATE VIEW renewd.mine AS SELECT 1",
		"CREATE FUNCTION renewd.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
		"CREATE TRIGGER mine BEFORE UPDATE ON renewd.grants " +
			"EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		"CREATE SCHEMA mine", "CREATE ROLE mine", "CREATE DATABASE mine",
		"DROP TABLE renewd.grants", "DROP TABLE renewd.later", "DROP SCHEMA renewd CASCADE",
		"ALTER TABLE renewd.grants ADD COLUMN mine int",
		"ALTER TABLE renewd.grants OWNER TO renewd_worker",
		"ALTER SCHEMA renewd RENAME TO mine",
		"TRUNCATE renewd.grants", "TRUNCATE renewd.later",
		"SET ROLE renewd_owner",
	} {
		err := statement(t, r.worker, sql)
		if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || pg.Code != forbidden {
			t.Errorf("%s: got %v, want it forbidden", sql, err)
		}
	}
}

func TestMigrate(t *testing.T) {
	r := give(t, databases.URL(t))
	address := secret.New(r.owner)
	worker := workerConfig(r.worker)
	if _, err := postgres.Open(t.Context(), worker); !errors.Is(err, postgres.ErrOlder) {
		t.Errorf("opened a database without tables: %v", err)
	}
	const list = "SELECT relname::text FROM pg_class WHERE relnamespace = 'renewd'::regnamespace"
	if tables := query(t, r.admin, list); len(tables) > 0 {
		t.Errorf("only looking made %q", tables)
	}
	if _, err := postgres.Migrate(t.Context(), worker.URL); err == nil {
		t.Error("the worker's role could make tables")
	}
	first, err := postgres.Migrate(t.Context(), address)
	if err != nil || first.From != 0 || first.To == 0 {
		t.Errorf("got %+v, %v", first, err)
	}
	if len(first.Applied) == 0 || first.Applied[0] != "00001_grants.sql" {
		t.Errorf("applied %q", first.Applied)
	}
	again, err := postgres.Migrate(t.Context(), address)
	if err != nil || again.From != first.To || again.To != first.To || len(again.Applied) > 0 {
		t.Errorf("the second time: got %+v, %v", again, err)
	}
	openMigrated(t, r.worker)
	exec(t, r.owner, "INSERT INTO renewd.migrations (version_id, is_applied) VALUES (99999, true)")
	if _, err := postgres.Open(t.Context(), worker); !errors.Is(err, postgres.ErrNewer) {
		t.Errorf("opened a newer schema: %v", err)
	}
	if _, err := postgres.Migrate(t.Context(), address); !errors.Is(err, postgres.ErrNewer) {
		t.Errorf("migrated a newer schema: %v", err)
	}
}

// Another process makes the schema between the look and the statement, which IF NOT EXISTS does not
// see.
func TestMigrateMeetsAnother(t *testing.T) {
	url := databases.URL(t)
	other, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.WithoutCancel(t.Context()))
	for _, sql := range []string{"BEGIN", "CREATE SCHEMA renewd"} {
		if _, err := other.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	var group errgroup.Group
	group.Go(func() error { _, err := postgres.Migrate(t.Context(), secret.New(url)); return err })
	const waits = "SELECT pid::text FROM pg_stat_activity WHERE datname = current_database() AND " +
		"wait_event_type = 'Lock'"
	for len(query(t, url, waits)) == 0 {
	}
	if _, err := other.Exec(t.Context(), "COMMIT"); err != nil {
		t.Error(err)
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// An installation in which one role did everything gets the two roles, and keeps its rows.
func TestRolesForWhatIsThere(t *testing.T) {
	url := databases.URL(t)
	g := storetest.Full(grant.Key{Provider: "p", User: "u"})
	if _, err := open(t, url).Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	give(t, url)
	r := give(t, url)
	s := openMigrated(t, r.worker)
	if _, err := s.Load(t.Context(), g.Key); err != nil {
		t.Error(err)
	}
	m, err := postgres.Migrate(t.Context(), secret.New(r.owner))
	if err != nil || len(m.Applied) > 0 {
		t.Errorf("got %+v, %v", m, err)
	}
	exec(t, r.owner, "ALTER TABLE renewd.grants ADD COLUMN later int") // as a later migration would
	if err := statement(t, r.worker, "TRUNCATE renewd.grants"); err == nil {
		t.Error("the worker's role may truncate")
	}
}

// A dump that the owner's role made, restored into an empty database by a superuser.
func TestRolesAfterARestore(t *testing.T) {
	r := migrated(t)
	g := storetest.Full(grant.Key{Provider: "p", User: "u"})
	if _, err := openMigrated(t, r.worker).Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "renewd.dump")
	databases.Run(t, "pg_dump", "--format=custom", "--schema=renewd", "--file="+file, r.owner)
	fresh := databases.URL(t)
	databases.Run(t, "pg_restore", "--exit-on-error", "--no-owner", "--dbname="+fresh, file)
	r = give(t, fresh)
	if _, err := openMigrated(t, r.worker).Load(t.Context(), g.Key); err != nil {
		t.Error(err)
	}
	m, err := postgres.Migrate(t.Context(), secret.New(r.owner))
	if err != nil || len(m.Applied) > 0 {
		t.Errorf("got %+v, %v", m, err)
	}
}
