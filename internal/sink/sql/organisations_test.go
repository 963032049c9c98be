package sql_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/schema"
)

// pivot is a many-to-many table as Laravel's guide has it.
const pivot = `CREATE TABLE organization_user (
	user_id INTEGER NOT NULL, organization_id VARCHAR(64) NOT NULL, user_role VARCHAR(64) NULL,
	note VARCHAR(64) NULL)`

// joined is the config of an app with that table.
func (a app) joined() sql.Config {
	c := a.config()
	c.Organisations = "organization_user"
	c.OrganisationColumns = map[string]string{
		"user_id": "row:id", "organization_id": "org:id", "user_role": "org:role",
	}
	return c
}

// in is a user of these organisations, each an id and a role.
func in(t *testing.T, user string, version int64, organisations ...string) grant.Grant {
	t.Helper()
	profile := schema.Profile{ID: user, Name: "Jane Doe"}
	for i := 0; i < len(organisations); i += 2 {
		profile.Organisations = append(profile.Organisations,
			schema.Organisation{ID: organisations[i], Role: organisations[i+1]})
	}
	g := live(t, user, version)
	var err error
	if g.Profile, err = grant.NewProfile(profile); err != nil {
		t.Fatal(err)
	}
	return g
}

// members are the rows of a user, as text.
func (a app) members(t *testing.T, user string) string {
	t.Helper()
	rows, err := a.Query("SELECT organization_id, user_role, note FROM organization_user WHERE " +
		"user_id = " + user + " ORDER BY organization_id")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var id string
		var role, note *string
		if err := rows.Scan(&id, &role, &note); err != nil {
			t.Fatal(err)
		}
		for _, more := range []*string{role, note} {
			if more != nil {
				id += " " + *more
			}
		}
		all = append(all, id)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, ", ")
}

// The rows of a user's organisations are those of the profile: some are added, some go, some
// change, and what else the app has in a row that stays is kept. Another user's are left alone.
func TestOrganisationsAreTheProfiles(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, pivot)
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x'), (2, 'kim', 'x')")
		a.do(t, `INSERT INTO organization_user VALUES (1, 'left', 'Admin', NULL),
			(1, 'stays', 'Member', 'mine'), (1, 'double', 'Member', NULL),
			(1, 'double', 'Member', NULL), (1, 'STAYS', 'Member', NULL), (2, 'kims', NULL, NULL)`)
		s := &store{}
		to := target(t, a.joined(), s)
		s.put(in(t, "jane", 7, "double", "Member", "new", "Owner", "stays", "Admin"))
		for range 2 {
			deliver(t, to, event("jane", "e1", schema.UserSynced))
			const want = "double Member, new Owner, stays Admin mine"
			if got := a.members(t, "1"); got != want {
				t.Errorf("%s, want %s", got, want)
			}
		}
		s.put(in(t, "jane", 6, "older", "Member"))
		deliver(t, to, event("jane", "e2", schema.UserSynced))
		ended := in(t, "jane", 8, "new", "Owner")
		ended.Status, ended.Pair = grant.ReauthRequired, grant.Pair{}
		s.put(ended)
		deliver(t, to, event("jane", "e3", schema.UserReauthRequired))
		const stays = "double Member, new Owner, stays Admin mine"
		if got := a.members(t, "1"); got != stays {
			t.Errorf("after the end of the session: %s, want %s", got, stays)
		}
		unknown := live(t, "jane", 9)
		unknown.Profile = ""
		s.put(unknown)
		deliver(t, to, event("jane", "e4", schema.UserSynced))
		large, err := grant.NewProfile(schema.Profile{ID: "jane", Name: "Jane Roe",
			Omitted: []string{"organisations"}})
		if err != nil {
			t.Fatal(err)
		}
		unknown.Profile = large
		s.put(unknown)
		deliver(t, to, event("jane", "e5", schema.UserSynced))
		if got := a.members(t, "1") + a.value(t, "SELECT name FROM users WHERE id = 1"); got !=
			stays+"Jane Roe" {
			t.Errorf("where no profile tells: %s", got)
		}
		delete(s.grants, grant.Key{Provider: "propelauth", User: "jane"})
		deliver(t, to, event("jane", "e6", schema.UserForgotten))
		if got := a.members(t, "1"); got != "" {
			t.Errorf("after an erasure: %s", got)
		}
		if got := a.members(t, "2"); got != "kims" {
			t.Errorf("another user's: %s", got)
		}
	})
}

// A row of an organisation that the app holds has its user wait, and nothing of the user is written
// meanwhile. A plan proposes the table.
func TestLockedOrganisation(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		s := &store{}
		s.put(in(t, "jane", 7, "o1", "Admin"))
		to := target(t, a.joined(), s)
		e := event("jane", "e1", schema.UserSynced)
		refused(t, to.Deliver(t.Context(), e), sink.Unreachable, "table organization_user")
		plan, err := to.Plan(t.Context())
		if err != nil || len(plan) != 1 {
			t.Fatal(plan, err)
		}
		a.do(t, plan[0])
		a.do(t, "INSERT INTO users (id, propel_id, name) VALUES (1, 'jane', 'x')")
		a.do(t, "INSERT INTO organization_user (user_id, organization_id) VALUES (1, 'o2')")
		tx, err := a.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.Exec("UPDATE organization_user SET user_role = 'held'"); err != nil {
			t.Fatal(err)
		}
		refused(t, to.Deliver(t.Context(), e), sink.Refused, "organisations is locked")
		if got := a.value(t, "SELECT name FROM users"); got != "x" {
			t.Errorf("the row of a user who waits has %s", got)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		deliver(t, to, e)
		if got := a.value(t, "SELECT organization_id FROM organization_user"); got != "o1" {
			t.Errorf("the user is in %s", got)
		}
	})
}

// An organisation whose row the app holds has its members wait, and nobody else.
func TestHeldOrganisationHasItsMembersWait(t *testing.T) {
	apps(t, func(t *testing.T, a app) {
		a.do(t, "CREATE TABLE organizations (id VARCHAR(64) PRIMARY KEY)")
		a.do(t, strings.Replace(pivot, "organization_id VARCHAR(64) NOT NULL",
			"organization_id VARCHAR(64) NOT NULL, FOREIGN KEY (organization_id) REFERENCES "+
				"organizations (id)", 1))
		a.do(t, "INSERT INTO organizations VALUES ('held'), ('free')")
		s := &store{}
		to := target(t, a.joined(), s)
		const users = 40
		for i := range users {
			user, of := fmt.Sprintf("u%d", i), "free"
			if i == users/2 {
				of = "held"
			}
			a.do(t, fmt.Sprintf("INSERT INTO users (id, propel_id, name) VALUES (%d, '%s', 'x')", i,
				user))
			s.put(in(t, user, 7, of, "Admin"))
		}
		tx, err := a.Begin()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		var id string
		err = tx.QueryRow("SELECT id FROM organizations WHERE id = 'held' FOR UPDATE").Scan(&id)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		errs := make([]error, users)
		for i := range users {
			wg.Go(func() {
				e := event(fmt.Sprintf("u%d", i), "e1", schema.UserSynced)
				errs[i] = to.Deliver(t.Context(), e)
			})
		}
		wg.Wait()
		for i, err := range errs {
			if i == users/2 {
				refused(t, err, sink.Unclear, "locked")
			} else if err != nil {
				t.Errorf("user %d: %v", i, err)
			}
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		deliver(t, to, event(fmt.Sprintf("u%d", users/2), "e1", schema.UserSynced))
		if got := a.value(t, "SELECT count(*) FROM organization_user"); got != "40" {
			t.Errorf("%s memberships", got)
		}
	})
}
