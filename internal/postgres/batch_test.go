package postgres_test

import (
	"errors"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/testkit/storetest"
)

func key(user string) grant.Key { return grant.Key{Provider: "p", User: user} }

func saved(t *testing.T, s grant.Store, user string) grant.Grant {
	t.Helper()
	g := storetest.Full(key(user))
	g.Claim = nil
	var err error
	if g.Revision, err = s.Save(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	return g
}

// rolledBack makes the next update of a grant fail as a lost serialization when it commits, after
// it has returned its rows. Each later update changes nothing, as if another writer had written the
// row in between.
const rolledBack = `CREATE SEQUENCE renewd.tries;
	CREATE FUNCTION renewd.once() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN IF nextval('renewd.tries') = 1 THEN RETURN NEW; END IF; RETURN NULL; END $$;
	CREATE FUNCTION renewd.fail() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = 'serialization_failure'; END $$;
	CREATE TRIGGER once BEFORE UPDATE ON renewd.grants FOR EACH ROW EXECUTE FUNCTION renewd.once();
	CREATE CONSTRAINT TRIGGER fail AFTER UPDATE ON renewd.grants
		DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION renewd.fail()`

// What a rolled-back try returned is not reported by the next.
func TestBatchTriedAgainReportsItsLastTryOnly(t *testing.T) {
	for name, c := range map[string]struct {
		call func(t *testing.T, s grant.Store, g grant.Grant) error
		want error
	}{
		"save": {func(t *testing.T, s grant.Store, g grant.Grant) error {
			_, err := s.Save(t.Context(), g)
			return err
		}, grant.ErrConflict},
		"claim": {func(t *testing.T, s grant.Store, g grant.Grant) error {
			_, _, err := s.Claim(t.Context(), g.Key, grant.ClaimRequest{
				Nonce: "a",
				For:   time.Minute,
			})
			return err
		}, grant.ErrClaimed},
	} {
		t.Run(name, func(t *testing.T) {
			url := databases.URL(t)
			s := open(t, url)
			g := saved(t, s, "jane")
			exec(t, url, rolledBack)
			if err := c.call(t, s, g); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if got, err := s.Load(t.Context(), g.Key); err != nil || got.Revision != g.Revision ||
				got.Claim != nil {
				t.Errorf("stored is revision %d with claim %v, %v", got.Revision, got.Claim, err)
			}
		})
	}
}

// A row or key that the database refuses says so, and fails alone.
func TestRefusedRowFailsAlone(t *testing.T) {
	s := open(t, databases.URL(t))
	keys := []grant.Key{key("a"), key("b"), key("no\x00text"), key("c"), key("no\xfftext")}
	grants := make([]grant.Grant, len(keys))
	for i, k := range keys {
		grants[i] = storetest.Full(k)
		grants[i].Claim = nil
	}
	grants[3].Profile = "{\"name\":\"Jos\xe9\"}"
	saves, err := s.SaveTogether(grants)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range saves {
		wantRefused(t, "save", keys[i], err, i >= 2)
	}
	saved(t, s, "c")
	for i, err := range s.LoadTogether(keys) {
		wantRefused(t, "load", keys[i], err, i == 2 || i == 4)
	}
	for i, err := range s.ClaimTogether(keys, grant.ClaimRequest{Nonce: "n", For: time.Minute}) {
		wantRefused(t, "claim", keys[i], err, i == 2 || i == 4)
	}
	wantRefused(t, "delete", keys[2], s.Delete(t.Context(), keys[2], 1), true)
}

func wantRefused(t *testing.T, what string, k grant.Key, err error, refused bool) {
	t.Helper()
	if errors.Is(err, grant.ErrRefused) != refused || !refused && err != nil {
		t.Errorf("%s %q: %v, refused: want %v", what, k.User, err, refused)
	}
}

// Walks and inserts go by bytes or by the database's own order throughout, whatever its language.
func TestDatabaseOfAnotherCollation(t *testing.T) {
	base := databases.URL(t)
	address, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	address.Path += "_english"
	exec(t, base,
		"CREATE DATABASE "+address.Path[1:]+
			" TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
	s := open(t, address.String())
	users := []string{"a", "B", "b", "A", "_", "Z", "z", "é", "e", "E", "a-b", "ab", "a b", "0"}
	grants := make([]grant.Grant, len(users))
	for i, u := range users {
		grants[i] = storetest.Full(key(u))
	}
	errs, err := s.SaveTogether(grants)
	if err := errors.Join(append(errs, err)...); err != nil {
		t.Fatal(err)
	}
	slices.Sort(users)
	// By ctid: as they were written.
	if got := query(
		t, address.String(), "SELECT user_id FROM renewd.grants ORDER BY ctid",
	); !slices.Equal(got, users) {
		t.Errorf("inserted, and so locked, as %q, want by bytes as updates do: %q", got, users)
	}
	var met []string
	for cursor, more := "", true; more; more = cursor != "" {
		page, next, err := s.List(t.Context(), cursor, 1)
		if err != nil || len(met) > len(users) {
			t.Fatal("the walk ended or does not end", met, err)
		}
		for _, l := range page {
			met = append(met, l.User)
		}
		cursor = next
	}
	slices.Sort(met)
	if !slices.Equal(met, users) {
		t.Errorf("the walk met %q of %q", met, users)
	}
}
