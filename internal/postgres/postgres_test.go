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
	"github.com/renewd/renewd/internal/pgtest"
	"github.com/renewd/renewd/internal/postgres"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/storetest"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

func open(t testing.TB, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{URL: grant.NewSecret(url), Cipher: storetest.Cipher{}})
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
			exec(t, url, "UPDATE renewd.grants SET "+column+" = $3, revision = revision + 1 WHERE provider = $1 AND user_id = $2", k.Provider, k.User, value)
		},
		Traces: func(t *testing.T, k grant.Key) int {
			t.Helper()
			return len(query(t, url, "SELECT user_id FROM renewd.grants g WHERE g::text LIKE '%' || $1 || '%'", k.User))
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
	proxy := storetest.NewProxy(t, address.Host)
	address.Host = proxy.Addr()
	storetest.LostReply(t, open(t, address.String()), proxy)
}

func openPrivate(t *testing.T, url string) *postgres.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Config{
		URL: grant.NewSecret(url), Cipher: storetest.Cipher{}, SealProfiles: true,
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
	if _, err := conn.Exec(t.Context(), "INSERT INTO renewd.migrations (version_id, is_applied) VALUES (99999, true)"); err != nil {
		t.Fatal(err)
	}
	_, err = postgres.Open(t.Context(), postgres.Config{URL: grant.NewSecret(url), Cipher: storetest.Cipher{}})
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
	if err := conn.QueryRow(t.Context(), "SELECT g::text FROM renewd.grants g").Scan(&row); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(row, "ref-canary") || strings.Contains(row, "acc-canary") || !strings.Contains(row, "canary") {
		t.Errorf("the row holds a token, or nothing: %s", row)
	}
}

// A row copied over another user's does not open.
func TestCopiedRowDoesNotOpen(t *testing.T) {
	url := databases.URL(t)
	s := open(t, url)
	for _, user := range []string{"a", "b"} {
		if _, err := s.Save(t.Context(), storetest.Full(grant.Key{Provider: "p", User: user})); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), "UPDATE renewd.grants SET tokens = (SELECT tokens FROM renewd.grants WHERE user_id = 'a') WHERE user_id = 'b'"); err != nil {
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

// What a later version put into a record stays when it is sealed anew.
func TestResealKeepsWhatItDoesNotKnow(t *testing.T) {
	url := databases.URL(t)
	s := open(t, url)
	g := storetest.Full(grant.Key{Provider: "p", User: "u"})
	if _, err := s.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	exec(t, url, `UPDATE renewd.grants SET state = '{"later": 1.50}'`)
	const whole = "SELECT g::text FROM renewd.grants g"
	was := query(t, url, whole)
	page, _, err := s.ListSealed(t.Context(), "", 1)
	if err == nil {
		err = s.Reseal(t.Context(), g.Key, page[0].Revision)
	}
	if err != nil {
		t.Fatal(err)
	}
	// This cipher seals the same to the same.
	want := strings.Replace(was[0], fmt.Sprint(page[0].Revision), fmt.Sprint(page[0].Revision+1), 1)
	if is := query(t, url, whole); len(is) != 1 || is[0] != want {
		t.Errorf("sealed anew it is\n%s\nwas\n%s", is, was)
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
				URL: grant.NewSecret(databases.URL(b)), Cipher: keys, SealProfiles: private,
			})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(s.Close)
			storetest.Renewals(b, s)
		})
	}
}
