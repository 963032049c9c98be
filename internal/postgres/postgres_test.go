package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

func open(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{
		URL:    secret.New(url),
		Cipher: storetest.Cipher{},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture { return fixture(t, databases.URL(t)) })
}

// fixture looks at records, and damages them, in the table itself.
func fixture(t *testing.T, url string) storetest.Fixture {
	return storetest.Fixture{
		Store: open(t, url),
		Damage: func(t *testing.T, k grant.Key, d storetest.Damage) {
			t.Helper()
			column, value := "state", any(`{"login": 5}`)
			if d == storetest.LostKey {
				column, value = "tokens", storetest.LostPair
			}
			exec(t, url,
				"UPDATE renewd.grants SET "+column+
					" = $3, revision = revision + 1 WHERE provider = $1 AND user_id = $2",
				k.Provider, k.User, value)
		},
		Traces: func(t *testing.T, k grant.Key) int {
			t.Helper()
			return len(query(t, url,
				"SELECT user_id FROM renewd.grants g WHERE g::text LIKE '%' || $1 || '%'", k.User))
		},
	}
}

// query reads one column beside the store.
func query(t *testing.T, url, sql string, args ...any) []string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	values, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return values
}

// exec runs one statement beside the store, or several without arguments.
func exec(t *testing.T, url, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// A save whose reply was lost on the way is found stored.
func TestSaveWhoseReplyWasLost(t *testing.T) {
	server, err := pgtest.Start(pgtest.Options{TCP: true})
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Remove)
	address, err := url.Parse(server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	wire := link.For(t, address.Host)
	address.Host = wire.Addr()
	storetest.LostReply(t, open(t, address.String()), wire)
}

func openPrivate(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{
		URL: secret.New(url), Cipher: storetest.Cipher{}, SealProfiles: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestStoreWithSealedProfiles(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Fixture {
		url := databases.URL(t)
		f := fixture(t, url)
		f.Store, f.SealsProfiles = openPrivate(t, url), true
		return f
	})
}

// A profile is sealed, or no longer, with the next save, and read as it is until then.
func TestProfilesChangeTheirForm(t *testing.T) {
	url := databases.URL(t)
	plain, private := open(t, url), openPrivate(t, url)
	storetest.ProfilesChangeTheirForm(t, plain, private, func(k grant.Key) bool {
		rows := query(t, url, "SELECT g::text FROM renewd.grants g WHERE user_id = $1", k.User)
		return strings.Contains(strings.Join(rows, "\n"), "Döe")
	})
}

func TestNewerSchemaIsRefused(t *testing.T) {
	url := databases.URL(t)
	open(t, url)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(
		t.Context(), "INSERT INTO renewd.migrations (version_id, is_applied) VALUES (99999, true)",
	); err != nil {
		t.Fatal(err)
	}
	_, err = postgres.Open(t.Context(), postgres.Config{
		URL:    secret.New(url),
		Cipher: storetest.Cipher{},
	})
	if !errors.Is(err, postgres.ErrNewer) {
		t.Errorf("opened a newer schema: %v", err)
	}
}

func TestNoTokenInTheTable(t *testing.T) {
	url := databases.URL(t)
	s := open(t, url)
	g := storetest.Full(grant.Key{Provider: "p", User: "canary"})
	if _, err := s.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var row string
	if err := conn.QueryRow(
		t.Context(), "SELECT g::text FROM renewd.grants g",
	).Scan(&row); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(row, "ref-canary") || strings.Contains(row, "acc-canary") ||
		!strings.Contains(row, "canary") {
		t.Errorf("the row holds a token, or nothing: %s", row)
	}
}

// A row copied over another user's does not open.
func TestCopiedRowDoesNotOpen(t *testing.T) {
	url := databases.URL(t)
	s := open(t, url)
	for _, user := range []string{"a", "b"} {
		if _, err := s.Save(t.Context(), storetest.Full(grant.Key{
			Provider: "p",
			User:     user,
		})); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(
		t.Context(),
		"UPDATE renewd.grants SET tokens = (SELECT tokens FROM renewd.grants WHERE user_id = "+
			"'a') WHERE user_id = 'b'",
	); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), grant.Key{Provider: "p", User: "b"}); err == nil {
		t.Error("the tokens of one user opened for another")
	}
	page, _, err := s.List(t.Context(), "", 10)
	if err != nil || len(page) != 2 || page[1].Err == nil || page[1].User != "b" {
		t.Errorf("list: %v, %v", page, err)
	}
}

// What a later version put into a record stays when the record is sealed again, and so does what
// that version bound.
func TestResealKeepsWhatItDoesNotKnow(t *testing.T) {
	url := databases.URL(t)
	s := open(t, url)
	for _, bound := range []bool{false, true} {
		k := grant.Key{Provider: "p", User: fmt.Sprintf("bound=%t", bound)}
		if _, err := s.Save(t.Context(), storetest.Full(k)); err != nil {
			t.Fatal(err)
		}
		const later = `"later": 1.50,`
		err := s.Rewrite(t.Context(), k, bound, func(state string) string {
			members := strings.TrimPrefix(state, `{"bound":true,`)
			if bound {
				return `{"bound":true,` + later + members
			}
			return "{" + later + members
		})
		if err != nil {
			t.Fatal(err)
		}
		const other = "SELECT concat_ws('|', version, status, fingerprint, next_due_at, " +
			"login_at, last_error, claim, profile, state) FROM renewd.grants WHERE user_id = $1"
		read := func() string {
			t.Helper()
			return strings.Replace(query(t, url, other, k.User)[0], `"bound":true,`, "", 1)
		}
		was := read()
		g, err := s.Load(t.Context(), k)
		if err == nil {
			err = s.Reseal(t.Context(), k, g.Revision)
		}
		if err == nil {
			_, err = s.Load(t.Context(), k)
		}
		if err != nil {
			t.Fatal(err)
		}
		if is := read(); is != was || !strings.Contains(is, later) {
			t.Errorf("bound %t: re-sealed it is\n%s\nwas\n%s", bound, is, was)
		}
	}
}

// Times are bound as PostgreSQL keeps them, to the microsecond.
func TestTimesOfAnyPrecisionComeBack(t *testing.T) {
	s := open(t, databases.URL(t))
	for n, odd := range []time.Duration{999, -1, 500, 1501} {
		g := storetest.Full(grant.Key{Provider: "p", User: fmt.Sprint(n)})
		g.LoginAt, g.SyncedAt = g.LoginAt.Add(odd),
			time.Date(1969, 1, 2, 3, 4, 5, 6789, time.UTC).Add(odd)
		if _, err := s.Save(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		got, err := s.Load(t.Context(), g.Key)
		if err != nil || got.LoginAt.Sub(g.LoginAt).Abs() > time.Microsecond {
			t.Errorf("%v beside a microsecond: %v, %v", odd, got.LoginAt, err)
		}
	}
}

// A change of a row by any writer but renewd is noticed.
func TestForgedRows(t *testing.T) {
	for _, private := range []bool{false, true} {
		t.Run(fmt.Sprintf("sealed=%t", private), func(t *testing.T) {
			storetest.Forged(t, func(t *testing.T) (storetest.Fixture, storetest.Forgery) {
				return forged(t, private)
			})
		})
	}
}

// forged is a store whose columns are written beside it.
func forged(t *testing.T, private bool) (storetest.Fixture, storetest.Forgery) {
	t.Helper()
	url := databases.URL(t)
	of := func(bound bool) *postgres.Store {
		s, err := postgres.Open(t.Context(), postgres.Config{
			URL:          secret.New(url),
			Cipher:       storetest.Cipher{},
			SealProfiles: private,
			RequireBound: bound,
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		return s
	}
	s := of(false)
	columns := postgres.Columns()[3:] // not the key and the revision
	return storetest.Fixture{Store: s, SealsProfiles: private}, storetest.Forgery{
		Fields: func(t *testing.T, k grant.Key) map[string]string {
			t.Helper()
			fields := map[string]string{}
			for _, c := range columns {
				sql := "SELECT " + c[0] + "::text FROM renewd.grants WHERE user_id = $1 AND " +
					c[0] + " IS NOT NULL"
				for _, value := range query(t, url, sql, k.User) {
					fields[c[0]] = value
				}
			}
			return fields
		},
		Write: func(t *testing.T, k grant.Key, fields map[string]string) {
			t.Helper()
			sets, args := []string{"revision = revision + 1"}, []any{k.User}
			for _, c := range columns {
				args = append(args, nil)
				if value, ok := fields[c[0]]; ok {
					args[len(args)-1] = value
				}
				sets = append(sets, fmt.Sprintf("%s = $%d::text::%s", c[0], len(args), c[1]))
			}
			exec(t, url, "UPDATE renewd.grants SET "+strings.Join(sets, ", ")+" WHERE user_id = $1",
				args...)
		},
		Sealed: []string{"tokens", "version"},
		Free:   []string{"fingerprint", "expires_at", "claim_nonce", "claim_until", "claim"},
		Unbind: func(t *testing.T, k grant.Key) {
			t.Helper()
			if err := s.Unbind(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		},
		Strict: of(true),
	}
}

func BenchmarkRenewals(b *testing.B) {
	keys, err := seal.NewKeyring(time.Now())
	if err != nil {
		b.Fatal(err)
	}
	for _, private := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%t", private), func(b *testing.B) {
			s, err := postgres.Open(b.Context(), postgres.Config{
				URL: secret.New(databases.URL(b)), Cipher: keys, SealProfiles: private,
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(s.Close)
			storetest.Renewals(b, s)
		})
	}
}
