package sql_test

import (
	"context"
	db "database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats.go/jetstream"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/mariatest"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

// world is an app's database with its users table, and a server with renewd's streams, on which
// nobody takes logins away.
type world struct {
	testing.TB
	*db.DB
	kind   string // of the database's driver
	config sql.Config
	js     jetstream.JetStream
	keys   *seal.Keyring

	figures *sdk.ManualReader
}

const usersTable = `CREATE TABLE users (
	id INTEGER PRIMARY KEY, propel_id VARCHAR(600) NULL, name VARCHAR(255) NULL,
	propel_access_token TEXT NULL, propel_refresh_token TEXT NULL, propel_expires_at TIMESTAMP NULL,
	last_login_at TIMESTAMP NULL, updated_at TIMESTAMP NULL)`

// both run a test on each kind of database.
func both[T interface {
	testing.TB
	Run(name string, test func(T)) bool
}](t T, test func(w *world)) {
	t.Run("postgresql", func(t T) {
		address := databases.URL(t)
		test(newWorld(t, "pgx", address, address))
	})
	t.Run("mariadb", func(t T) {
		address := mariatest.Start(t)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		test(newWorld(t, "mysql", address,
			"root@unix("+u.Query().Get("socket")+")/shop?time_zone=%27%2B00%3A00%27"))
	})
}

func newWorld(t testing.TB, kind, address, dsn string) *world {
	t.Helper()
	w := &world{TB: t, kind: kind, figures: sdk.NewManualReader(), config: sql.Config{
		Name: "app", Provider: "propelauth", URL: secret.New(address), Table: "users", ID: "id",
		User: "propel_id", Access: "propel_access_token", Refresh: "propel_refresh_token",
		ExpiresAt: "propel_expires_at", UpdatedAt: "updated_at", SignedInAt: "last_login_at",
		Channel: "renewd_app", Poll: 20 * time.Millisecond,
	}}
	var err error
	w.DB, err = db.Open(kind, dsn)
	w.must(err)
	t.Cleanup(func() { w.DB.Close() })
	w.do(usersTable)
	w.do("CREATE INDEX users_propel_id ON users (propel_id)")
	w.do("CREATE INDEX users_updated_at ON users (updated_at)")
	w.js = streams.Start(t, natsd.Config{})
	want := streams.Wanted(t, "")
	want.Sources = true
	streams.Ensure(t, w.js, want)
	w.keys, err = seal.NewKeyring(time.Now())
	w.must(err)
	w.must(streams.Engine(t, w.js, stream.Config{}).PublishKeys(t.Context(), w.keys.JWKS()))
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) do(format string, args ...any) {
	w.Helper()
	statement := fmt.Sprintf(format, args...)
	if _, err := w.Exec(statement); err != nil {
		w.Fatalf("%s: %v", statement, err)
	}
}

// user writes a row, changed that long ago, with a refresh token.
func (w *world) user(id int, user, refresh string, ago time.Duration) {
	w.Helper()
	at := time.Now().Add(-ago).UTC().Format(time.DateTime)
	w.do(`INSERT INTO users (id, propel_id, propel_access_token, propel_refresh_token,
		last_login_at, updated_at) VALUES (%d, '%s', 'at-%d', '%s', '%s', '%s')`, id, user, id,
		refresh, at, at)
}

// source opens the source as the settings have it.
func (w *world) source() (*sql.Source, *sql.Bucket) {
	w.Helper()
	table, err := sql.Open(w.config)
	w.must(err)
	w.Cleanup(table.Close)
	bucket, err := sql.OpenBucket(w.Context(), w.js, schema.Subjects{}, w.config.Name)
	w.must(err)
	return sql.New(table, bucket, w.publisher()), bucket
}

func (w *world) publisher() *publishers.Publisher {
	w.Helper()
	p, err := publishers.New(w.js.Conn(), publishers.WithSource(w.config.EventSource()))
	w.must(err)
	return p
}

// imports runs an import.
func (w *world) imports() sql.Progress {
	w.Helper()
	s, _ := w.source()
	p, err := s.Import(w.Context(), false, nil, nil)
	w.must(err)
	return p
}

// watch runs the watch until the test ends, or stop is called.
func (w *world) watch() (stop func()) {
	w.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = sql.Watch{
			Config: w.config, JetStream: w.js, Publisher: w.publisher(), Now: time.Now,
			Rand: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler),
			Meter: sdk.NewMeterProvider(sdk.WithReader(w.figures)).Meter("renewd"),
		}.Run(ctx)
	}()
	stop = func() { cancel(); <-ended }
	w.Cleanup(stop)
	return stop
}

// login is the refresh token of the user's login in the stream; empty: there is none.
func (w *world) login(user string) string {
	w.Helper()
	s, err := w.js.Stream(w.Context(), topology.Logins)
	w.must(err)
	subject := schema.Subjects{}.Of(schema.Address{
		Type: schema.UserLogin, Provider: "propelauth", User: user, Sender: "sources",
	})
	m, err := s.GetLastMsgForSubject(w.Context(), subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return ""
	}
	w.must(err)
	e, err := schema.Subjects{}.Decode(schema.Header(m.Header), m.Data, schema.Arrival{
		Subject: m.Subject, Stream: topology.Logins, Sequence: m.Sequence, Time: m.Time,
	})
	w.must(err)
	data, err := schema.Data[schema.Login](e)
	w.must(err)
	opened, err := w.keys.OpenLogin(data.Tokens)
	w.must(err)
	return opened.Tokens.Refresh.Reveal()
}

// counted is how many rows /metrics has with a result.
func (w *world) counted(result string) (n int64) {
	w.Helper()
	var all metricdata.ResourceMetrics
	w.must(w.figures.Collect(w.Context(), &all))
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			rows, _ := m.Data.(metricdata.Sum[int64])
			for _, p := range rows.DataPoints {
				if of, _ := p.Attributes.Value("result"); of.AsString() == result {
					n += p.Value
				}
			}
		}
	}
	return n
}

// logins is how many logins were ever published.
func (w *world) logins() uint64 {
	w.Helper()
	s, err := w.js.Stream(w.Context(), topology.Logins)
	w.must(err)
	info, err := s.Info(w.Context())
	w.must(err)
	return info.State.LastSeq
}

// What is in a table is imported once, and what cannot be is counted and holds nothing up.
func TestImport(t *testing.T) {
	both(t, func(w *world) {
		for i := range 1200 {
			w.user(i, fmt.Sprintf("u%d", i), fmt.Sprintf("rt-%d", i), time.Hour)
		}
		w.user(2001, "", "rt", 0)
		w.user(2002, strings.Repeat("u", 257), "rt", 0)
		w.user(2003, "twice", "rt-a", 0)
		w.user(2004, "twice", "rt-b", 0)
		w.user(2005, "alone", "rt", 0)
		w.do("UPDATE users SET propel_access_token = NULL WHERE id = 2005")
		w.do("INSERT INTO users (id, propel_id) VALUES (2006, 'out')")
		w.user(2007, "U7", "rt-other-case", 0)

		s, _ := w.source()
		seen, err := s.Look(w.Context(), true, nil)
		w.must(err)
		if w.logins() != 0 || seen.New != 1201 || seen.Rows != 1207 {
			t.Errorf("a look: %+v, and %d logins", seen, w.logins())
		}
		p := w.imports()
		if p.Done.IsZero() || p.Tally.Taken != 1201 || p.Tally.Empty != 1 ||
			p.Tally.Problems[sql.NoUser] != 1 || p.Tally.Problems[sql.UserID] != 1 ||
			p.Tally.Problems[sql.Double] != 2 || p.Tally.Problems[sql.NoAccess] != 1 {
			t.Errorf("imported %+v", p)
		}
		if got := p.Tally.Examples[sql.Double]; strings.Join(got, " ") != "2003 2004" {
			t.Errorf("rows of double: %v", got)
		}
		for user, token := range map[string]string{"u7": "rt-7", "U7": "rt-other-case",
			"twice": "", "u1199": "rt-1199"} {
			if got := w.login(user); got != token {
				t.Errorf("%s has %q, want %q", user, got, token)
			}
		}
		before := w.logins()
		if p := w.imports(); p.Tally.Taken != 0 || p.Tally.Known != 1201 || w.logins() != before {
			t.Errorf("imported again: %+v", p.Tally)
		}
	})
}

// An import that ends in the middle goes on where it stopped.
func TestImportGoesOn(t *testing.T) {
	both(t, func(w *world) {
		for i := range 1200 {
			w.user(i, fmt.Sprintf("u%d", i), fmt.Sprintf("rt-%d", i), time.Hour)
		}
		s, bucket := w.source()
		killed := errors.New("killed")
		n := 0
		_, err := s.Import(w.Context(), false, func(context.Context) error {
			if n++; n > 700 {
				return killed
			}
			return nil
		}, nil)
		if !errors.Is(err, killed) {
			t.Fatal(err)
		}
		p, err := bucket.Progress(w.Context())
		w.must(err)
		if p.After != "499" || !p.Done.IsZero() {
			t.Errorf("it stopped at %+v", p)
		}
		if p := w.imports(); p.Tally.Rows != 1200 || p.Tally.Taken+p.Tally.Known != 1200 ||
			p.Done.IsZero() || w.logins() != 1200 {
			t.Errorf("it went on: %+v, and %d logins", p.Tally, w.logins())
		}
	})
}

// A user who signs in while an import waits at its pace is not imported with the older tokens.
func TestImportTakesWhatTheRowHoldsNow(t *testing.T) {
	both(t, func(w *world) {
		w.user(1, "ann", "rt-ann", time.Hour)
		w.user(2, "bob", "rt-bob", time.Hour)
		s, _ := w.source()
		_, err := s.Import(w.Context(), false, func(context.Context) error {
			w.do("UPDATE users SET propel_refresh_token = 'rt-ann-2' WHERE id = 1")
			w.do("DELETE FROM users WHERE id = 2")
			return nil
		}, nil)
		w.must(err)
		if got := w.login("ann"); got != "rt-ann-2" || w.login("bob") != "" || w.logins() != 1 {
			t.Errorf("ann has %q, of %d logins", got, w.logins())
		}
	})
}

// A refresh token that is taken out of a row is no login, and drops nothing.
func TestAClearedRowIsNoLogin(t *testing.T) {
	both(t, func(w *world) {
		w.user(1, "ann", "rt-ann", time.Hour)
		w.imports()
		w.watch()
		now := func() string { return time.Now().UTC().Format(time.DateTime) }
		w.do(`UPDATE users SET propel_refresh_token = NULL, propel_access_token = 'at-sink',
			updated_at = '%s' WHERE id = 1`, now())
		w.user(2, "bob", "rt-bob", 0)
		testkit.Eventually(t, "bob's login", func() bool { return w.login("bob") == "rt-bob" })
		s, _ := w.source()
		_, err := s.Import(w.Context(), true, nil, nil)
		w.must(err)
		if n := w.logins(); n != 2 {
			t.Errorf("%d logins, want one of each", n)
		}
		w.do(`UPDATE users SET propel_access_token = 'at-new', last_login_at = '%s',
			updated_at = '%[1]s' WHERE id = 1`, now())
		testkit.Eventually(t, "a sign-in without a refresh token", func() bool {
			return w.logins() == 3
		})
	})
}

// A row that the app's sign-in writes is a login; one that a sink changes, say, is none.
func TestWatch(t *testing.T) {
	both(t, func(w *world) {
		w.user(1, "ann", "rt-ann", time.Hour)
		w.user(2, "bob", "rt-bob", time.Hour)
		w.imports()
		stop := w.watch()
		now := func() string { return time.Now().UTC().Format(time.DateTime) }
		w.do(`UPDATE users SET propel_access_token = 'at-sink', updated_at = '%s' WHERE id = 2`,
			now())
		w.user(3, "cy", "rt-cy", 0)
		w.do(`UPDATE users SET propel_refresh_token = 'rt-ann-2', last_login_at = '%s',
			updated_at = '%[1]s' WHERE id = 1`, now())
		testkit.Eventually(t, "the logins", func() bool {
			return w.login("ann") == "rt-ann-2" && w.login("cy") == "rt-cy"
		})
		testkit.Eventually(t, "that both are counted", func() bool {
			return w.counted("taken") == 2
		})
		stop()
		if n := w.logins(); n != 4 {
			t.Errorf("%d logins, want two of the import and two of the watch", n)
		}

		// Signed in while nothing watches.
		w.do(`UPDATE users SET propel_refresh_token = 'rt-bob-2', last_login_at = '%s',
			updated_at = '%[1]s' WHERE id = 2`, now())
		stop = w.watch()
		testkit.Eventually(t, "the login of before", func() bool {
			return w.login("bob") == "rt-bob-2"
		})
		_, bucket := w.source()
		testkit.Eventually(t, "the status", func() bool {
			s, err := bucket.Status(w.Context())
			return err == nil && s.Tally.Taken == 3 && s.Tally.Foreign == 0
		})
		stop()
	})
}

// A row whose time of change is yet to come, as a clock that is wrong writes it, keeps no login of
// another row from being seen.
func TestARowOfTomorrowHoldsNobodyUp(t *testing.T) {
	both(t, func(w *world) {
		w.config.Channel = ""
		var values []string
		const all = 3500 // more than are read of the whole table within a minute
		for i := range all {
			values = append(values, fmt.Sprintf("(%d, 'u%d', '2026-01-02 03:04:05')", i, i))
		}
		w.do("INSERT INTO users (id, propel_id, updated_at) VALUES %s", strings.Join(values, ", "))
		w.user(all, "tomorrow", "rt", -20*time.Hour)
		w.imports()
		w.watch()
		for i, now := range []time.Duration{0, -21 * time.Hour, 0} {
			id := all - 1 - i
			w.do("UPDATE users SET propel_access_token = 'at', propel_refresh_token = 'rt-%d', "+
				"updated_at = '%s' WHERE id = %d", id,
				time.Now().Add(-now).UTC().Format(time.DateTime), id)
			user := fmt.Sprintf("u%d", id)
			testkit.Eventually(t, "a login of "+user, func() bool {
				return w.login(user) == fmt.Sprintf("rt-%d", id)
			})
		}
	})
}

// Of two rows with one user id none is taken. Once the app has removed one, the other is.
func TestDoubleRowIsTakenOnceItIsAlone(t *testing.T) {
	both(t, func(w *world) {
		w.config.Channel = ""
		w.user(1, "twice", "rt-1", time.Hour)
		w.user(2, "twice", "rt-2", time.Hour)
		w.imports()
		w.watch()
		_, bucket := w.source()
		double := func() int {
			s, err := bucket.Status(w.Context())
			w.must(err)
			return s.Tally.Problems[sql.Double]
		}
		testkit.Eventually(t, "both are seen", func() bool { return double() == 2 })
		w.do("DELETE FROM users WHERE id = 1")
		testkit.Eventually(t, "the login of the other", func() bool {
			return w.login("twice") == "rt-2"
		})
		if n := double(); n != 2 {
			t.Errorf("counted %d times", n)
		}
	})
}

// A table that is restored from a backup brings tokens back that newer ones have replaced. They are
// shown to no provider, and a sign-in after that is a login.
func TestRestoredTableBringsNoLogin(t *testing.T) {
	both(t, func(w *world) {
		w.config.Channel = ""
		w.user(1, "ann", "rt-1", time.Hour)
		w.user(2, "bob", "rt-bob", time.Hour)
		w.imports()
		w.watch()
		signs := func(refresh string) {
			w.do("UPDATE users SET propel_refresh_token = '%s', updated_at = '%s' WHERE id = 1",
				refresh, time.Now().UTC().Format(time.DateTime))
		}
		for _, refresh := range []string{"rt-2", "rt-3"} {
			signs(refresh)
			testkit.Eventually(t, refresh, func() bool { return w.login("ann") == refresh })
		}
		before := w.logins()
		signs("rt-1")
		_, bucket := w.source()
		testkit.Eventually(t, "the old token is seen", func() bool {
			s, err := bucket.Status(w.Context())
			return err == nil && s.Tally.Problems[sql.Spent] == 1
		})
		if n := w.logins(); n != before {
			t.Errorf("%d logins of the restored row", n-before)
		}
		signs("rt-4")
		testkit.Eventually(t, "the next sign-in", func() bool { return w.login("ann") == "rt-4" })
	})
}

// A table that another program locks is told as down and why, and no login is lost: neither one
// that was written under the lock, nor one of after it.
func TestLockedTable(t *testing.T) {
	both(t, func(w *world) {
		w.user(1, "ann", "rt-ann", time.Hour)
		w.imports()
		w.watch()
		conn, err := w.Conn(w.Context())
		w.must(err)
		defer conn.Close()
		do := func(statement string) {
			_, err := conn.ExecContext(w.Context(), statement)
			w.must(err)
		}
		lock, unlock := "LOCK TABLES users WRITE", "UNLOCK TABLES"
		if w.kind == "pgx" {
			do("BEGIN")
			lock, unlock = "LOCK TABLE users IN ACCESS EXCLUSIVE MODE", "COMMIT"
		}
		do(lock)
		do("UPDATE users SET propel_refresh_token = 'rt-ann-2', updated_at = '" +
			time.Now().UTC().Format(time.DateTime) + "' WHERE id = 1")
		_, bucket := w.source()
		status := func() sql.Status {
			s, err := bucket.Status(w.Context())
			w.must(err)
			return s
		}
		testkit.Eventually(w, "that it is down", func() bool {
			return !status().DownSince.IsZero()
		})
		if said := status().Error; !strings.Contains(said, "locked") {
			w.Errorf("%q does not say that the table is locked", said)
		}
		do(unlock)
		testkit.Eventually(w, "the login", func() bool { return w.login("ann") == "rt-ann-2" })
		w.user(2, "bob", "rt-bob", 0)
		testkit.Eventually(w, "the login of after", func() bool {
			return w.login("bob") == "rt-bob" && status().DownSince.IsZero()
		})
	})
}

// A replica of PostgreSQL, which takes no writes and tells of no changes, will do for a source.
func TestReplica(t *testing.T) {
	address := databases.URL(t)
	w := newWorld(t, "pgx", address, address)
	w.user(1, "ann", "rt-ann", time.Hour)
	w.config.URL = secret.New(databases.Replica(t, address))
	if p := w.imports(); p.Tally.Taken != 1 {
		t.Errorf("the import took %d rows", p.Tally.Taken)
	}
	w.watch()
	w.do("UPDATE users SET propel_refresh_token = 'rt-ann-2', updated_at = now() WHERE id = 1")
	testkit.Eventually(t, "the login", func() bool { return w.login("ann") == "rt-ann-2" })
	_, bucket := w.source()
	testkit.Eventually(t, "a status", func() bool {
		s, err := bucket.Status(t.Context())
		w.must(err)
		return s.Tally.Taken == 1 && !s.Notified && s.DownSince.IsZero()
	})
}

// PostgreSQL tells of a row that was written without a time of its change.
func TestTriggerTells(t *testing.T) {
	address := databases.URL(t)
	w := newWorld(t, "pgx", address, address)
	w.user(1, "ann", "rt-ann", time.Hour)
	table, err := sql.Open(w.config)
	w.must(err)
	defer table.Close()
	lacks, err := table.Plan(t.Context())
	w.must(err)
	if len(lacks) != 2 {
		t.Fatalf("%q, want a function and a trigger", lacks)
	}
	for _, statement := range lacks {
		w.do("%s", statement)
	}
	if lacks, err := table.Plan(t.Context()); err != nil || len(lacks) > 0 {
		t.Errorf("then it lacks %q, %v", lacks, err)
	}
	w.imports()
	w.watch()
	_, bucket := w.source()
	testkit.Eventually(t, "that it listens", func() bool {
		s, err := bucket.Status(t.Context())
		return err == nil && s.Notified
	})
	w.do("UPDATE users SET propel_refresh_token = 'rt-ann-2' WHERE id = 1")
	testkit.Eventually(t, "the login", func() bool { return w.login("ann") == "rt-ann-2" })
}

// A table without a column for changes is read again and again.
func TestWatchWithoutTimes(t *testing.T) {
	both(t, func(w *world) {
		w.config.UpdatedAt, w.config.SignedInAt, w.config.ExpiresAt = "", "", ""
		w.user(1, "ann", "rt-ann", time.Hour)
		w.imports()
		w.watch()
		w.do("UPDATE users SET propel_refresh_token = 'rt-ann-2' WHERE id = 1")
		testkit.Eventually(t, "the login", func() bool { return w.login("ann") == "rt-ann-2" })
	})
}

// A token that changes without a sign-in was renewed by somebody else. It is a login all the same:
// the newest token is the right one.
func TestSomebodyElseRenews(t *testing.T) {
	both(t, func(w *world) {
		for i, user := range []string{"ann", "bob", "cy"} {
			w.user(i, user, "rt-"+user, time.Hour)
		}
		s, bucket := w.source()
		_, err := s.Look(t.Context(), true, nil)
		w.must(err)
		at := time.Now().UTC().Format(time.DateTime)
		set := func(id int, columns string) {
			w.do("UPDATE users SET %s, updated_at = '%s' WHERE id = %d", columns, at, id)
		}
		set(0, "propel_refresh_token = 'rt-ann-2'")
		set(1, "propel_refresh_token = 'rt-bob-2', last_login_at = '"+at+"'")
		set(2, "propel_refresh_token = NULL, propel_access_token = NULL")
		found, err := s.Look(t.Context(), false, nil)
		w.must(err)
		if found.Changed != 2 || found.Foreign != 1 || found.Cleared != 1 {
			t.Errorf("%+v, want two changed, one of them without a sign-in, and one emptied", found)
		}

		w.imports()
		w.watch()
		set(1, "propel_refresh_token = 'rt-bob-3'")
		testkit.Eventually(t, "the login, and the suspicion", func() bool {
			s, err := bucket.Status(t.Context())
			return err == nil && s.Tally.Foreign == 1 && w.login("bob") == "rt-bob-3"
		})
		later := time.Now().Add(time.Minute).UTC().Format(time.DateTime)
		w.do("UPDATE users SET last_login_at = '%s', updated_at = '%[1]s' WHERE id = 1", later)
		testkit.Eventually(t, "that it was a sign-in", func() bool {
			s, err := bucket.Status(t.Context())
			return err == nil && s.Tally.Foreign == 0
		})
	})
}

// What Laravel's cast wrote is read by its APP_KEY, and by no other.
func TestEncrypted(t *testing.T) {
	both(t, func(w *world) {
		appKey := secret.New("base64:" + base64.StdEncoding.EncodeToString(
			[]byte(strings.Repeat("k", 32))))
		crypter, err := appdb.NewCrypter(appKey)
		w.must(err)
		w.user(1, "ann", crypter.Encrypt("rt-ann"), time.Hour)
		w.do("UPDATE users SET propel_access_token = '%s' WHERE id = 1", crypter.Encrypt("at-ann"))
		w.user(2, "bob", "rt-plain", time.Hour)
		p, err := sql.Propose(t.Context(), w.config.URL, "users")
		w.must(err)
		if len(p.Missing()) > 0 || !p.Encrypted || p.Columns["user"] != "propel_id" ||
			p.Columns["signed_in_at"] != "last_login_at" ||
			p.Columns["expires_at"] != "propel_expires_at" {
			t.Errorf("proposed %+v", p)
		}
		w.config.Encrypted, w.config.AppKey = true, appKey
		if p := w.imports(); p.Tally.Taken != 1 || p.Tally.Problems[sql.NotEncrypted] != 1 ||
			w.login("ann") != "rt-ann" {
			t.Errorf("imported %+v", p.Tally)
		}
		w.config.AppKey = secret.New("base64:" + base64.StdEncoding.EncodeToString(
			[]byte(strings.Repeat("o", 32))))
		s, _ := w.source()
		if found, err := s.Look(t.Context(), false, nil); err != nil ||
			found.Problems[sql.OtherKey] != 1 {
			t.Errorf("another key: %+v, %v", found, err)
		}
	})
}

// A table that does not fit, or cannot be read, is said in a line. The watch goes on once it can.
func TestTableThatDoesNotFit(t *testing.T) {
	both(t, func(w *world) {
		type mapping = func(c *sql.Config)
		for want, change := range map[string]mapping{
			"there is no column users.nope": func(c *sql.Config) { c.Access = "nope" },
			"there is no table nothing":     func(c *sql.Config) { c.Table = "nothing" },
			"column users.id is of type":    func(c *sql.Config) { c.Refresh = "id" },
			"column users.name is of type":  func(c *sql.Config) { c.UpdatedAt = "name" },
			"users.x; there is no column":   func(c *sql.Config) { c.ID, c.User = "x", "y" },
		} {
			was := w.config
			change(&w.config)
			s, _ := w.source()
			if _, err := s.Look(t.Context(), false, nil); err == nil ||
				!strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
			w.config = was
		}
		w.user(1, "ann", "rt-ann", time.Hour)
		w.imports()
		w.watch()
		_, bucket := w.source()
		w.do("ALTER TABLE users RENAME TO away")
		testkit.Eventually(t, "that it says so", func() bool {
			s, err := bucket.Status(t.Context())
			return err == nil && !s.DownSince.IsZero() &&
				strings.Contains(s.Error, "there is no table users")
		})
		w.do("ALTER TABLE away RENAME TO users")
		w.user(2, "bob", "rt-bob", 0)
		testkit.Eventually(t, "the login", func() bool { return w.login("bob") == "rt-bob" })
	})
}
