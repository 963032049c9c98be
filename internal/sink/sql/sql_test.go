package sql_test

import (
	"context"
	db "database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/internal/testkit/mariatest"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/schema"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

// app is an app's database, as Laravel's guide has it: its users table, and the history.
type app struct {
	*db.DB
	kind    string
	address string
}

const usersTable = `CREATE TABLE users (
	id INTEGER PRIMARY KEY, propel_id VARCHAR(255), name VARCHAR(255) NOT NULL, email VARCHAR(255),
	avatar VARCHAR(255) NULL, data TEXT NULL, email_verified_at TIMESTAMP NULL,
	propel_access_token TEXT NULL, propel_refresh_token TEXT NULL, propel_expires_at TIMESTAMP NULL,
	requires_reauthentication BOOLEAN NOT NULL DEFAULT FALSE,
	is_active BOOLEAN NOT NULL DEFAULT TRUE,
	plan VARCHAR(8) NULL, organisations TEXT NULL, propel_version BIGINT NULL)`

const historyTable = `CREATE TABLE propel_token_syncs (
	user_id INTEGER NOT NULL, success BOOLEAN NOT NULL, failure_reason VARCHAR(255) NULL,
	synced_at TIMESTAMP NULL, event VARCHAR(255) NOT NULL)`

// apps are an app on each kind of database.
func apps[T interface {
	testing.TB
	Run(name string, f func(T)) bool
}](t T, test func(t T, a app)) {
	t.Run("postgresql", func(t T) {
		address := databases.URL(t)
		test(t, open(t, app{kind: "pgx", address: address}, address))
	})
	t.Run("mariadb", func(t T) {
		address := mariatest.Start(t)
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		dsn := "root@unix(" + u.Query().Get("socket") + ")/shop?time_zone=%27%2B00%3A00%27"
		test(t, open(t, app{kind: "mysql", address: address}, dsn))
	})
}

func open(t testing.TB, a app, dsn string) app {
	t.Helper()
	var err error
	if a.DB, err = db.Open(a.kind, dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	a.do(t, usersTable)
	a.do(t, "CREATE INDEX users_propel_id ON users (propel_id)")
	a.do(t, historyTable)
	return a
}

func (a app) do(t testing.TB, statement string) {
	t.Helper()
	if _, err := a.Exec(statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// value is one value of the database, as text; "NULL" for null.
func (a app) value(t *testing.T, query string) string {
	t.Helper()
	var v db.NullString
	if err := a.QueryRow(query).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	if !v.Valid {
		return "NULL"
	}
	return v.String
}

// config maps the columns of the guide.
func (a app) config() sql.Config {
	return sql.Config{
		URL: secret.New(a.address), Table: "users", Key: "propel_id", Version: "propel_version",
		WriteTokens: true,
		Columns: map[string]string{
			"name": "name", "avatar": "picture", "data": "raw", "plan": "raw:/metadata/plan",
			"email_verified_at": "email_verified_at", "propel_access_token": "access_token",
			"propel_expires_at": "expires_at", "requires_reauthentication": "must_sign_in",
			"is_active": "active", "organisations": "organisations",
		},
	}
}

// store is a store of grants in memory.
type store struct {
	mu     sync.Mutex
	grants map[grant.Key]grant.Grant
	fails  error
}

func (s *store) load(_ context.Context, k grant.Key) (grant.Grant, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.grants[k]
	switch {
	case s.fails != nil:
		return g, s.fails
	case !ok:
		return g, grant.ErrNotFound
	}
	return g, nil
}

func (s *store) put(g grant.Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grants == nil {
		s.grants = map[grant.Key]grant.Grant{}
	}
	s.grants[g.Key] = g
}

var synced = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// live is a user who is signed in, as the store has it.
func live(t testing.TB, user string, version int64) grant.Grant {
	t.Helper()
	yes := true
	p, err := grant.NewProfile(schema.Profile{
		ID: user, Name: "Jane Doe", Picture: "https://img.example/j", EmailVerified: &yes,
		Email:         user + "@a.example",
		Organisations: []schema.Organisation{{ID: "o1", Role: "Admin"}},
		Raw:           []byte(`{"metadata":{"plan":"pro"}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	return grant.Grant{
		Key: grant.Key{Provider: "propelauth", User: user}, Version: version, Status: grant.Live,
		Pair: grant.Pair{
			Access:  secret.New(fmt.Sprint("access-", user, "-", version)),
			Refresh: secret.New("R3FRESH-" + user), ExpiresAt: synced.Add(30 * time.Minute),
		},
		Profile: p, SyncedAt: synced,
	}
}

func event(user, id string, of schema.Type) schema.Event {
	return schema.Event{
		ID: id, Type: of, Provider: "propelauth", User: user, Time: synced,
		Data: []byte(`{"reason":"revoked"}`),
	}
}

func target(t testing.TB, c sql.Config, s *store) *sql.Target {
	t.Helper()
	to, err := sql.New(c, s.load)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(to.Close)
	return to
}

func deliver(t *testing.T, to *sql.Target, e schema.Event) {
	t.Helper()
	if err := to.Deliver(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// refused wants a fault of this blame that says this and shows no token.
func refused(t *testing.T, err error, blame sink.Blame, says string) {
	t.Helper()
	got := sink.Unclear
	if f, ok := errors.AsType[*sink.Fault](err); ok {
		got = f.Blame
	}
	if err == nil || got != blame || !strings.Contains(err.Error(), says) {
		t.Errorf("%v (%s), want %s: %s", err, got, blame, says)
	}
	if err != nil && (strings.Contains(err.Error(), "access-") ||
		strings.Contains(err.Error(), "R3FRESH")) {
		t.Errorf("the error shows a token: %v", err)
	}
}

// A user's row has what the store says now; at the end of the session the token goes and the flags
// are set. The refresh token is never written.
func TestRowIsWhatTheStoreSays(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name, propel_refresh_token) VALUES (1, "+
			"'jane', 'x', 'old')")
		a.do(t, "INSERT INTO users (id, propel_id, name, propel_access_token) VALUES (2, "+
			"'kim', 'Kim', 'kims')")
		s := &store{}
		to := target(t, a.config(), s)
		s.put(live(t, "jane", 7))
		deliver(t, to, event("jane", "e1", schema.UserSynced))
		for column, want := range map[string]string{
			"name": "Jane Doe", "avatar": "https://img.example/j",
			"propel_access_token": "access-jane-7", "plan": "pro",
			"propel_version": "7", "propel_refresh_token": "old",
			"data":          `{"metadata":{"plan":"pro"}}`,
			"organisations": `[{"id":"o1","role":"Admin"}]`,
		} {
			if got := a.value(t, "SELECT "+column+" FROM users WHERE id = 1"); got != want {
				t.Errorf("%s is %q, want %q", column, got, want)
			}
		}
		const right = "SELECT count(*) FROM users WHERE id = 1 AND is_active AND NOT " +
			"requires_reauthentication " +
			"AND propel_expires_at = '2026-01-31 12:30:00' AND email_verified_at = '2026-01-31 " +
			"12:00:00'"
		if got := a.value(t, right); got != "1" {
			t.Error("flags or times are wrong")
		}
		if got := a.value(t, "SELECT propel_access_token FROM users WHERE id = 2"); got != "kims" {
			t.Errorf("another user's row was written: %s", got)
		}
		ended := live(t, "jane", 8)
		ended.Status, ended.Pair = grant.ReauthRequired, grant.Pair{}
		s.put(ended)
		deliver(t, to, event("jane", "e2", schema.UserReauthRequired))
		const out = "SELECT count(*) FROM users WHERE id = 1 AND NOT is_active AND " +
			"requires_reauthentication " +
			"AND propel_access_token IS NULL AND propel_expires_at IS NULL AND name = 'Jane Doe'"
		if got := a.value(t, out); got != "1" {
			t.Error("the end of the session is not in the row")
		}
	})
}

// A dormant user's session lives: an outcome that comes again while nothing asks for the user does
// not sign the user out.
func TestDormantUserIsSignedIn(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
		c := a.config()
		c.Columns["email"] = "reason"
		delete(c.Columns, "name")
		s := &store{}
		g := live(t, "jane", 7)
		g.Status = grant.Dormant
		s.put(g)
		deliver(t, target(t, c, s), event("jane", "e1", schema.UserSynced))
		const in = "SELECT count(*) FROM users WHERE is_active AND email IS NULL AND " +
			"NOT requires_reauthentication"
		if got := a.value(t, in); got != "1" {
			t.Error("a dormant user is signed out in the row")
		}
	})
}

// Where an encrypted column takes no null, a missing token is an empty text, encrypted: the app
// decrypts whatever is there.
func TestMissingTokenIsEncrypted(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
		a.do(t, "ALTER TABLE users ADD COLUMN sealed VARCHAR(999) NOT NULL DEFAULT ''")
		c := a.config()
		c.AppKey = secret.New("base64:" + strings.Repeat("A", 43) + "=")
		c.Columns["sealed"] = "access_token encrypted"
		s := &store{}
		ended := live(t, "jane", 8)
		ended.Status, ended.Pair = grant.ReauthRequired, grant.Pair{}
		s.put(ended)
		deliver(t, target(t, c, s), event("jane", "e1", schema.UserReauthRequired))
		if got := a.value(t, "SELECT sealed FROM users"); !strings.HasPrefix(got, "eyJpdiI6") {
			t.Errorf("the column has %q, want a payload of Laravel's", got)
		}
	})
}

// An older version, as from a process that was slow, changes nothing; the same again is harmless.
// A user of whom the store knows nothing, or nothing proven, is left alone.
func TestVersionFence(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
		a.do(t, "INSERT INTO users (id, propel_id, name, propel_access_token) VALUES (2, "+
			"'kim', 'Kim', 'kims')")
		s := &store{}
		to := target(t, a.config(), s)
		for _, version := range []int64{7, 9, 8, 9} {
			s.put(live(t, "jane", version))
			deliver(t, to, event("jane", fmt.Sprint("e", version), schema.UserSynced))
		}
		if got := a.value(t,
			"SELECT propel_access_token FROM users WHERE id = 1"); got != "access-jane-9" {
			t.Errorf("the token is %s", got)
		}
		deliver(t, to, event("kim", "e1", schema.UserRefreshFailed))
		deliver(t, to, event("kim", "e2", schema.UserSynced))
		suspended := live(t, "jane", 10)
		suspended.Status = grant.Suspended
		s.put(suspended)
		deliver(t, to, event("jane", "e10", schema.UserSuspended))
		if got := a.value(t, "SELECT propel_access_token FROM users WHERE id = 1"); got != "NULL" {
			t.Errorf("a suspended user's token is %s", got)
		}
		unproven := live(t, "kim", 3)
		unproven.Status = grant.Unproven
		s.put(unproven)
		deliver(t, to, event("kim", "e3", schema.UserSynced))
		if got := a.value(t, "SELECT propel_access_token FROM users WHERE id = 2"); got != "kims" {
			t.Errorf("a user who is not known has %s", got)
		}
		delete(s.grants, grant.Key{Provider: "propelauth", User: "kim"})
		deliver(t, to, event("kim", "e4", schema.UserForgotten))
		if got := a.value(t, "SELECT propel_access_token FROM users WHERE id = 2"); got != "NULL" {
			t.Errorf("after an erasure the token is %s", got)
		}
	})
}

// An erasure that finds no row is done: the app took the row away itself.
func TestErasureWithoutRow(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		s := &store{}
		to := target(t, a.config(), s)
		deliver(t, to, event("jane", "e1", schema.UserForgotten))
		s.put(grant.Grant{Key: grant.Key{Provider: "propelauth", User: "jane"}, Version: 9,
			Status: grant.Forgotten})
		deliver(t, to, event("jane", "e2", schema.UserForgotten))
	})
}

// Where the key column holds a field of the profile, which is erased first, an erasure finds the
// user's rows by the column that holds the provider's id. Without one it says so.
func TestErasureFindsRowByUser(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, `INSERT INTO users (id, propel_id, name, email, propel_access_token) VALUES
			(1, NULL, 'x', 'jane@a.example', NULL), (2, 'JANE', 'x', 'kim@a.example', 'kims')`)
		c := a.config()
		c.Key, c.KeyField = "email", "email"
		if !c.MissesErasures() {
			t.Error("it is not known that an erasure finds no row")
		}
		s := &store{}
		s.put(grant.Grant{Key: grant.Key{Provider: "propelauth", User: "jane"}, Version: 9,
			Status: grant.Forgotten})
		forgotten := event("jane", "e2", schema.UserForgotten)
		refused(t, target(t, c, s).Deliver(t.Context(), forgotten), sink.Refused,
			"have a column hold the field user")
		c.Columns["propel_id"] = "user"
		if c.MissesErasures() {
			t.Error("the column of the user is not known")
		}
		to := target(t, c, s)
		for i, address := range []string{"jane@a.example", "new@a.example"} {
			a.do(t, fmt.Sprintf("UPDATE users SET email = '%s' WHERE id = 1", address))
			g := live(t, "jane", int64(7+i))
			p, err := grant.NewProfile(schema.Profile{ID: "jane", Email: address, Name: "Jane"})
			if err != nil {
				t.Fatal(err)
			}
			g.Profile = p
			s.put(g)
			deliver(t, to, event("jane", "e1", schema.UserSynced))
			if i == 0 { // the app has made another row since
				a.do(t, "INSERT INTO users (id, propel_id, name, propel_access_token) "+
					"SELECT 3, propel_id, name, propel_access_token FROM users WHERE id = 1")
			}
		}
		const tokens = "SELECT count(*) FROM users WHERE propel_access_token IS NOT NULL"
		if got := a.value(t, tokens); got != "3" {
			t.Fatalf("%s rows have a token, want 3", got)
		}
		delete(s.grants, grant.Key{Provider: "propelauth", User: "jane"})
		deliver(t, to, forgotten)
		if got := a.value(t, tokens+" AND id <> 2"); got != "0" {
			t.Errorf("%s rows of an erased user have a token", got)
		}
		if got := a.value(t, tokens+" AND id = 2"); got != "1" {
			t.Error("an erasure took another user's token")
		}
	})
}

// What is wrong with one row, or with the table, is said and blamed on it, and keeps no other row
// of the batch from being written.
func TestBadRows(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, `INSERT INTO users (id, propel_id, name) VALUES
			(1, 'jane', 'x'), (2, 'twin', 'x'), (3, 'twin', 'x'),
			(4, 'MIXED', 'x'), (5, 'long', 'x'), (6, 'locked', 'x')`)
		s := &store{}
		to := target(t, a.config(), s)
		for _, user := range []string{"jane", "twin", "mixed", "long", "locked", "nobody"} {
			s.put(live(t, user, 1))
		}
		long := live(t, "long", 1)
		p, err := grant.NewProfile(schema.Profile{
			ID: "long", Raw: []byte(`{"metadata":{"plan":"access-far-too-long"}}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		long.Profile = p
		s.put(long)
		tx, err := a.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE users SET name = 'held' WHERE id = 6"); err != nil {
			t.Fatal(err)
		}
		var delivering sync.WaitGroup
		failed := map[string]error{}
		var mu sync.Mutex
		for _, user := range []string{"long", "twin", "mixed", "locked", "nobody", "jane"} {
			delivering.Go(func() {
				err := to.Deliver(t.Context(), event(user, "e1", schema.UserSynced))
				mu.Lock()
				defer mu.Unlock()
				failed[user] = err
			})
		}
		delivering.Wait()
		if failed["jane"] != nil ||
			a.value(t, "SELECT name FROM users WHERE id = 1") != "Jane Doe" {
			t.Error("others kept jane's row from being written:", failed["jane"])
		}
		refused(t, failed["twin"], sink.Refused, "2 rows have this user")
		refused(t, failed["mixed"], sink.Refused, "no row has this user")
		refused(t, failed["nobody"], sink.Refused, "no row has this user")
		refused(t, failed["long"], sink.Refused, "22001")
		refused(t, failed["locked"], sink.Refused, "locked")
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		deliver(t, to, event("locked", "e2", schema.UserSynced))
		if got := a.value(t, "SELECT count(*) FROM users WHERE name = 'Jane Doe'"); got != "2" {
			t.Errorf("%s rows are written, want those of jane and of the one that was locked", got)
		}
		a.do(t, "ALTER TABLE users DROP COLUMN avatar")
		refused(t, to.Deliver(t.Context(), event("jane", "e3", schema.UserSynced)),
			sink.Unreachable, "")
		refused(t, to.Deliver(t.Context(), event("jane", "e4", schema.UserSynced)),
			sink.Unreachable, "column users.avatar: see renewd sinks plan")
		a.do(t, "ALTER TABLE users ADD COLUMN avatar VARCHAR(255) NULL")
		deliver(t, to, event("jane", "e5", schema.UserSynced))
	})
}

// What a trigger says of one row is blamed on that row, and keeps no other row of the batch from
// being written.
func TestTriggerRefusesOneRow(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (0, 'mallory', 'x')")
		s := &store{}
		s.put(live(t, "mallory", 1))
		users := []string{"mallory"}
		for i := range 20 {
			user := fmt.Sprint("u", i)
			a.do(t, fmt.Sprintf(
				"INSERT INTO users (id, propel_id, name) VALUES (%d, '%s', 'x')", i+1, user))
			s.put(live(t, user, 1))
			users = append(users, user)
		}
		if a.kind == "pgx" {
			a.do(t, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				RAISE EXCEPTION 'no' USING ERRCODE = 'no_data_found'; END $$`)
			a.do(t, `CREATE TRIGGER refuses BEFORE UPDATE ON users FOR EACH ROW
				WHEN (OLD.propel_id = 'mallory') EXECUTE FUNCTION refuse()`)
		} else {
			a.do(t, `CREATE TRIGGER refuses BEFORE UPDATE ON users FOR EACH ROW
				IF OLD.propel_id = 'mallory' THEN
					SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'no'; END IF`)
		}
		to := target(t, a.config(), s)
		var delivering sync.WaitGroup
		failed := make([]error, len(users))
		for i, user := range users {
			delivering.Go(func() {
				failed[i] = to.Deliver(t.Context(), event(user, "e1", schema.UserSynced))
			})
		}
		delivering.Wait()
		refused(t, failed[0], sink.Refused, "")
		if err := errors.Join(failed[1:]...); err != nil {
			t.Error("mallory's row kept others from being written:", err)
		}
	})
}

// A plan is what the table lacks, and once its statements have run the sink works.
func TestPlan(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "CREATE TABLE members (sub VARCHAR(255))")
		a.do(t, "INSERT INTO members VALUES ('jane')")
		c := a.config()
		c.Table, c.Key, c.Version = "members", "sub", "renewd_version"
		c.History = "syncs"
		c.HistoryColumns = map[string]string{"member": "user", "ok": "success",
			"at": "event_time", "event": "event_id"}
		s := &store{}
		s.put(live(t, "jane", 7))
		to := target(t, c, s)
		refused(t, to.Deliver(t.Context(), event("jane", "e1", schema.UserSynced)),
			sink.Unreachable, "column members.renewd_version")
		plan, err := to.Plan(t.Context())
		if err != nil || len(plan) != len(c.Columns)+2 {
			t.Fatal(plan, err)
		}
		for _, statement := range plan {
			a.do(t, statement)
		}
		if plan, err := to.Plan(t.Context()); err != nil || len(plan) > 0 {
			t.Error("after the plan was run:", plan, err)
		}
		deliver(t, to, event("jane", "e1", schema.UserSynced))
		deliver(t, to, event("jane", "e1", schema.UserSynced))
		if got := a.value(t, "SELECT propel_access_token FROM members"); got != "access-jane-7" {
			t.Errorf("the token is %s", got)
		}
		if got := a.value(t,
			"SELECT count(*) FROM syncs WHERE ok AND event = 'e1' AND member = "+
				"'jane'"); got != "1" {
			t.Errorf("%s rows of history for one outcome that came twice", got)
		}
		c.Table = "strangers"
		plan, err = target(t, c, s).Plan(t.Context())
		if err != nil || len(plan) != 1 || !strings.Contains(plan[0], "there is no table") {
			t.Error(plan, err)
		}
	})
}

// A table is found where statements find it, on the search path, also where the database user has a
// schema that comes before the table's.
func TestTableOnTheSearchPath(t *testing.T) {
	address := databases.URL(t)
	a := open(t, app{kind: "pgx", address: address}, address)
	a.do(t, "CREATE SCHEMA AUTHORIZATION CURRENT_USER")
	a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
	s := &store{}
	s.put(live(t, "jane", 7))
	deliver(t, target(t, a.config(), s), event("jane", "e1", schema.UserSynced))
	c := a.config()
	c.Table = "public.users"
	s.put(live(t, "jane", 8))
	deliver(t, target(t, c, s), event("jane", "e2", schema.UserSynced))
	if got := a.value(t, "SELECT propel_access_token FROM public.users"); got != "access-jane-8" {
		t.Errorf("the token is %s", got)
	}
}

// The history of the guide: a row for each outcome, with the app's own id of the user.
func TestHistory(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name, email) VALUES (41, 'other', 'x', "+
			"'jane@a.example')")
		c := a.config()
		c.Key, c.KeyField = "email", "email" // not the provider's id
		c.History = "propel_token_syncs"
		c.HistoryColumns = map[string]string{
			"user_id": "row:id", "success": "success", "failure_reason": "fail_reason",
			"synced_at": "event_time", "event": "event_id",
		}
		s := &store{}
		s.put(live(t, "jane", 7))
		to := target(t, c, s)
		deliver(t, to, event("jane", "e1", schema.UserSynced))
		deliver(t, to, event("jane", "e2", schema.UserRefreshFailed))
		deliver(t, to, event("jane", "e2", schema.UserRefreshFailed))
		if got := a.value(t,
			"SELECT count(*) FROM propel_token_syncs WHERE user_id = 41 AND success AND "+
				"failure_reason IS NULL"); got != "1" {
			t.Errorf("%s successes", got)
		}
		if got := a.value(t,
			"SELECT count(*) FROM propel_token_syncs WHERE user_id = 41 AND NOT success AND "+
				"failure_reason = 'revoked'"); got != "1" {
			t.Errorf("%s failures", got)
		}
		s.put(grant.Grant{Key: grant.Key{Provider: "propelauth", User: "jane"}, Version: 9,
			Status: grant.Live})
		refused(t, to.Deliver(t.Context(), event("jane", "e3", schema.UserSynced)), sink.Refused,
			"no value in the field")
	})
}

// A database that is not there, or a store, is at fault as a whole.
func TestUnreachable(t *testing.T) {
	s := &store{}
	s.put(live(t, "jane", 7))
	for _, address := range []string{"postgres://x:s3cret@127.0.0.1:1/shop?sslmode=disable",
		"mysql://x:s3cret@127.0.0.1:1/shop"} {
		c := app{address: address}.config()
		err := target(t, c, s).Deliver(t.Context(), event("jane", "e1", schema.UserSynced))
		refused(t, err, sink.Unreachable, "cannot be reached")
		if strings.Contains(err.Error(), "s3cret") {
			t.Error(err)
		}
	}
	s.fails = errors.New("down")
	c := app{address: "postgres://127.0.0.1:1/shop"}.config()
	refused(t, target(t, c, s).Deliver(t.Context(), event("jane", "e1", schema.UserSynced)),
		sink.Unreachable, "store does not answer")
}

// A table that another program locks keeps its rows waiting for seconds, and loses none.
func TestLockedTable(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
		s := &store{}
		s.put(live(t, "jane", 7))
		to := target(t, a.config(), s)
		e := event("jane", "e1", schema.UserSynced)

		conn, err := a.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		locks := []string{"BEGIN", "LOCK TABLE users IN ACCESS EXCLUSIVE MODE", "COMMIT"}
		if a.kind == "mysql" {
			locks = []string{"SELECT 1", "LOCK TABLES users WRITE", "UNLOCK TABLES"}
		}
		do := func(statement string) {
			if _, err := conn.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		do(locks[0])
		do(locks[1])
		refused(t, to.Deliver(t.Context(), e), sink.Unclear, "locked")
		do(locks[2])
		deliver(t, to, e)
		if got := a.value(t, "SELECT propel_version FROM users"); got != "7" {
			t.Errorf("the row has version %s", got)
		}
	})
}

// A database that takes no writes, such as a replica, is at fault as a whole, and its error says
// what to set.
func TestReadOnlyDatabase(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		c := a.config()
		if a.kind == "pgx" {
			a.do(t, "ALTER DATABASE "+a.value(t, "SELECT current_database()")+
				" SET default_transaction_read_only = on")
		} else { // root may write to a read-only server too
			a.do(t, "CREATE USER shop@localhost")
			a.do(t, "GRANT ALL ON shop.* TO shop@localhost")
			a.do(t, "SET GLOBAL read_only = 1")
			c.URL = secret.New(strings.Replace(a.address, "//root@", "//shop@", 1))
		}
		s := &store{}
		s.put(live(t, "jane", 7))
		err := target(t, c, s).Deliver(t.Context(), event("jane", "e1", schema.UserSynced))
		refused(t, err, sink.Unreachable, "point database_url at the primary")
	})
}

// Mistakes in the settings name the setting.
func TestCheck(t *testing.T) {
	good := app{address: "postgres://127.0.0.1/shop"}.config()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*sql.Config){
		"database_url: want " +
			"postgres://": func(c *sql.Config) { c.URL = secret.New("oracle://s3cret") },
		"database_url: is no " +
			"MySQL": func(c *sql.Config) { c.URL = secret.New("mysql://s3cret") },
		"table: missing":                       func(c *sql.Config) { c.Table = "" },
		"key_field: ":                          func(c *sql.Config) { c.KeyField = "enabled" },
		"columns: missing":                     func(c *sql.Config) { c.Columns = nil },
		"columns.propel_access_token: whoever": func(c *sql.Config) { c.WriteTokens = false },
		"columns.a: \"refresh_token\": no such": func(c *sql.Config) {
			c.Columns["a"] = "refresh_token"
		},
		"columns.a: needs " +
			"app_key": func(c *sql.Config) {
			c.Columns["a"] = "access_token " +
				"encrypted"
		},
		"columns.propel_id: is the " +
			"key": func(c *sql.Config) { c.Columns["propel_id"] = "user" },
		"columns.a: success is for history " +
			"alone": func(c *sql.Config) { c.Columns["a"] = "success" },
		"app_key: want " +
			"base64:": func(c *sql.Config) { c.AppKey = secret.New("s3cret") },
		"history: set both":       func(c *sql.Config) { c.History = "h" },
		"organisations: set both": func(c *sql.Config) { c.Organisations = "o" },
		"organisations: which column holds": func(c *sql.Config) {
			c.Organisations = "o"
			c.OrganisationColumns = map[string]string{"a": "row:id"}
		},
		"organisations: which column says whose": func(c *sql.Config) {
			c.Organisations = "o"
			c.OrganisationColumns = map[string]string{"a": "org:id", "p": "provider"}
		},
		"organisations.a: access_token: want org:id": func(c *sql.Config) {
			c.Organisations = "o"
			c.OrganisationColumns = map[string]string{"a": "access_token"}
		},
		"columns.a: org:id is for organisations": func(c *sql.Config) {
			c.Columns["a"] = "org:id"
		},
	} {
		c := app{address: "postgres://127.0.0.1/shop"}.config()
		change(&c)
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), want) ||
			strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// Batches that are written side by side never take each other's rows for locked, also where the
// database looks at the whole table to find the rows of a batch.
func TestBatchesDoNotPassEachOthersRowsOver(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		s := &store{}
		var users []string
		for i := range 20 {
			user := fmt.Sprint("u", i)
			a.do(t, fmt.Sprintf(
				"INSERT INTO users (id, propel_id, name) VALUES (%d, '%s', 'x')", i+1, user))
			s.put(live(t, user, 1))
			users = append(users, user)
		}
		to := target(t, a.config(), s)
		var delivering sync.WaitGroup
		for _, user := range users {
			delivering.Go(func() {
				for i := range 5 {
					e := event(user, fmt.Sprint("e", i), schema.UserSynced)
					if err := to.Deliver(t.Context(), e); err != nil {
						t.Errorf("%s: %v", user, err)
						return
					}
				}
			})
		}
		delivering.Wait()
	})
}
