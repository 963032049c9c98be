package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/testkit/pgtest"
)

// The way of docs/security.md: the owner's role migrates, a renewd with the worker's role serves.
func TestServeWithoutDDL(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	admin := databases.URL(t)
	databases.Script(t, admin, "../../deploy/postgres/roles.sql")
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_STREAMS_APPLY=true",
		"RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_DATABASE_URL=" + pgtest.As("renewd_worker", admin), "RENEWD_DATABASE_MIGRATE=false",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitUsage, "renewd migrate", "serve")
	want(t, env, exitFailed, "roles.sql", "migrate") // with the worker's role
	owner := []string{"migrate", "--database-url", pgtest.As("renewd_owner", admin)}
	var did migrated
	out := want(t, env, exitDone, "", append(owner, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &did); err != nil {
		t.Fatal(err)
	}
	if did.From != 0 || did.Version == 0 || len(did.Applied) == 0 {
		t.Errorf("got %+v", did)
	}
	want(t, env, exitDone, "was already at version", owner...)

	start(t, env)
	tokens := write(t, "tokens.json", standIn.login(t, "jane"))
	jane := func(args ...string) []string { return append(args, "--user", "jane", "--wait") }
	want(t, env, exitDone, "user.synced", jane("publish", "login", "--tokens-file", tokens)...)
	want(t, env, exitDone, "tokens renewed", jane("publish", "refresh-due", "--want", "tokens")...)
	want(t, env, exitDone, "live", "user", "show", "jane")
}

// Commands that only look make no tables, whatever the setting says.
func TestOnlyServeAndMigrateMakeTables(t *testing.T) {
	t.Parallel()
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_DATABASE_URL=" + databases.URL(t),
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitFailed, "renewd migrate", "doctor")
	want(t, env, exitUsage, "renewd migrate", "user", "show", "jane")
	want(t, env, exitDone, "applied 00001_grants.sql", "migrate")
	want(t, env, exitFailed, "ok      store", "doctor") // renewd has not started yet
	want(t, env, exitFailed, "no such user", "user", "show", "jane")
}

func TestMigrateUsage(t *testing.T) {
	t.Parallel()
	far, near := "postgres://o:canary@db.example/renewd", "postgres://o:canary@127.0.0.1:1/renewd"
	want(t, nil, exitUsage, "RENEWD_DATABASE_URL", "migrate")
	want(t, nil, exitUsage, "--database-url", "migrate", "--database-url", "mysql://canary@x")
	want(t, nil, exitUsage, "sslmode=verify-full", "migrate", "--database-url", far)
	_, _, errs := runIn(t, nil, "migrate", "--database-url", near)
	if strings.Contains(errs, "canary") || !strings.Contains(errs, "127.0.0.1") {
		t.Errorf("got %s", errs)
	}
}
