package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/natsd"
)

// natsServer starts a NATS server without any stream and returns its address.
func natsServer(t *testing.T) string {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s.ClientURL()
}

// want runs a command and holds what it says against what is wanted.
func want(t *testing.T, env []string, code int, says string, args ...string) (stdout string) {
	t.Helper()
	got, out, errs := runIn(t, env, args...)
	if got != code || !strings.Contains(out+errs, says) {
		t.Fatalf("renewd %s: got %d, want %d and %q\nstdout: %s\nstderr: %s",
			strings.Join(args, " "), got, code, says, out, errs)
	}
	return out
}

func TestKeys(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "deep", "keys.json")
	env := []string{"RENEWD_KEYS_FILE=" + path}
	want(t, env, exitFailed, "renewd keys new", "keys", "list")
	want(t, env, exitFailed, "renewd keys new", "keys", "rotate")
	want(t, env, exitDone, "made "+path, "keys", "new")
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want(t, env, exitFailed, "there already", "keys", "new")
	want(t, env, exitDone, "", "keys", "new", "--if-missing")
	if again, _ := os.ReadFile(path); !bytes.Equal(first, again) {
		t.Fatal("a keyring was written over")
	}
	want(t, env, exitFailed, "keys rotate adds some", "keys", "promote")
	want(t, env, exitDone, "only open for now", "keys", "rotate")
	want(t, env, exitFailed, "RENEWD_NATS_LISTEN", "keys", "retire", keyIDs(t, path)[1])
	want(t, env, exitDone, "not yet", "keys", "list")
	want(t, env, exitFailed, "keys promote", "keys", "rotate")
	want(t, env, exitDone, "seal from now on", "keys", "promote")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	var keys []struct {
		ID, Use string
		Current bool
	}
	err = json.Unmarshal([]byte(want(t, env, exitDone, "", "keys", "list", "-o", "json")), &keys)
	if err != nil {
		t.Fatal(err)
	}
	current := 0
	for _, k := range keys {
		if k.Current {
			current++
		}
	}
	if len(keys) != 4 || current != 2 {
		t.Errorf("got %+v, want two keys of each kind and one of them current", keys)
	}
	text := want(t, env, exitDone, "opens only", "keys", "list")
	if strings.Contains(text, "master") {
		t.Errorf("got %s", text)
	}
	if err := os.Chmod(path, 0o620); err != nil {
		t.Fatal(err)
	}
	want(t, env, exitFailed, "chmod go-w", "keys", "list")
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(`{"version":1,"login":"hunter2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, errs := runIn(t, env, "keys", "list")
	if strings.Contains(errs, "hunter2") || !strings.Contains(errs, path) {
		t.Errorf("a damaged keyring: %s", errs)
	}
}

// keyIDs are of the keyring's keys, as keys list shows them.
func keyIDs(t *testing.T, path string) []string {
	t.Helper()
	ring, err := keyfile.File{Path: path}.Load(t.Context())
	return mustRing(t, ring, err).IDs()
}

func TestStreams(t *testing.T) {
	t.Parallel()
	want(t, nil, exitUsage, "RENEWD_NATS_URL", "streams", "plan")
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_NATS_PREFIX=shop",
		"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c",
	}
	want(t, env, exitFailed, "streams apply", "streams", "plan")
	want(t, env, exitFailed, "no streams of renewd", "replay")
	want(t, env, exitFailed, "streams apply", "publish", "refresh-due", "--user", "u1", "--wait",
		"--timeout", "10s")
	want(t, env, exitDone, "+ create", "streams", "apply")
	want(t, env, exitDone, "= unchanged", "streams", "plan")
	want(t, env, exitDone, `"action":"unchanged"`, "streams", "plan", "-o", "json")
	want(t, append(env, "RENEWD_OUTCOME_AGE=1d", "RENEWD_SYNCED_AGE=1d"), exitFailed, "refused",
		"streams", "plan")
	want(t, append(env, "RENEWD_OUTCOME_AGE=1d", "RENEWD_SYNCED_AGE=1d"), exitDone, "max_age",
		"streams", "apply", "--force")
	want(t, env, exitDone, "shop", "publish", "refresh-due", "--user", "u1")
}

// The commands of the README's tour, against a renewd that serves and a stand-in that is an app
// too.
func TestTour(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	dir := t.TempDir()
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dir,
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_CONFIRM_MIN=1s",
		"RENEWD_POLICY_CONFIRM_MAX=1s", "RENEWD_POLICY_FLOOR=1s",
		"RENEWD_GUARD_ALONE=1ms", // jane is the only user
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"), exitUsage, "renewd streams apply", "serve")
	addr := start(t, append(env, "RENEWD_STREAMS_APPLY=true", "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	want(t, append(env, "RENEWD_HTTP_ADDR="+addr), exitDone, "store: ok", "healthcheck")
	want(t, append(env, "RENEWD_HTTP_ADDR="+addr), exitDone, `"store":"ok"`, "healthcheck", "-o",
		"json")

	tokens := write(t, "tokens.json", standIn.login(t, "jane@example.com"))
	user := []string{"--user", "jane@example.com"}
	call := func(args ...string) []string { return append(args, user...) }
	want(t, env, exitFailed, "unknown_grant", call("publish", "refresh-due", "--wait")...)
	want(t, env, exitDone, "user.synced",
		call("publish", "login", "--tokens-file", tokens, "--wait")...)
	want(t, env, exitDone, "tokens renewed",
		call("publish", "refresh-due", "--want", "tokens", "--reason", "try", "--wait")...)
	var e api.Outcome
	out := want(t, env, exitDone, "", call("publish", "refresh-due", "--wait", "-o", "json")...)
	err := json.Unmarshal([]byte(out), &e)
	if err != nil || e.Type != "user.synced" || e.Subject != "jane@example.com" ||
		e.SpecVersion != "1.0" {
		t.Errorf("got %s, %v", out, err)
	}
	want(t, env, exitDone, "live", "user", "show", "jane@example.com")
	want(t, env, exitFailed, "no such user", "user", "show", "nobody")

	jane := func(args ...string) []string {
		return append(append([]string{"user"}, args...), "jane@example.com")
	}
	want(t, env, exitDone, "suspended: rests until", jane("suspend", "--reason", "odd")...)
	want(t, env, exitFailed, "suspended",
		call("publish", "refresh-due", "--want", "tokens", "--wait")...)
	want(t, env, exitFailed, "suspended", "token", "jane@example.com")
	want(t, env, exitDone, "0 must sign in again, 1 suspended", "doctor")
	want(t, env, exitDone, "recovered", jane("resume")...)
	want(t, env, exitFailed, "unknown_grant", "user", "suspend", "nobody")

	standIn.end(t, "jane@example.com")
	want(t, env, exitFailed, "revoked",
		call("publish", "refresh-due", "--want", "tokens", "--wait")...)
	replayed := want(t, env, exitDone, "", call("replay", "--since", "1h", "-o", "json")...)
	lines := strings.Split(strings.TrimSpace(replayed), "\n")
	if len(lines) < 4 || !strings.Contains(lines[len(lines)-1], "user.reauth_required") {
		t.Errorf("replay: got %s", strings.Join(lines, "\n"))
	}
	want(t, env, exitDone, "must sign in again", "replay", "--type", "user.reauth_required")
	table := want(t, env, exitDone, "0 events", "replay", "--until", "1h", "--since", "2h")
	if table != "" {
		t.Errorf("replay of an hour ago: got %s", table)
	}

	var seen terminal
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx,
			[]string{"renewd", "subscribe", "--since", "1h", "--type", "user.reauth_required"}, env,
			nil, &seen, &seen)
	}()
	seen.until(t, "must sign in again: revoked", 1)
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("subscribe: got %d: %s", code, seen.String())
	}

	want(t, env, exitUsage, "--yes", "user", "forget", "jane@example.com")
	want(t, env, exitDone, "erased", "user", "forget", "jane@example.com", "--yes")
	want(t, env, exitFailed, "no such user", "user", "show", "jane@example.com")
	want(t, env, exitDone, "user.forgotten", call("replay")...)
	want(t, env, exitFailed, "nothing is known of propelauth/jnae", "user", "forget", "jnae",
		"--yes")
	want(t, env, exitDone, "no provider propelaut is known here, only propelauth (did you mean",
		"replay", "--provider", "propelaut")

	other := append(env, "RENEWD_KEYS_FILE="+filepath.Join(dir, "other.json"),
		"RENEWD_HTTP_ADDR=127.0.0.1:0")
	want(t, other, exitDone, "", "keys", "new")
	want(t, other, exitUsage, "is not the keyring", "serve")
	want(t, other, exitDone, "", "keys", "publish")
}

func TestUsageOfClientCommands(t *testing.T) {
	t.Parallel()
	for says, args := range map[string][]string{
		"did you mean user.synced?": {"subscribe", "--type", "user.sync"},
		"--since":                   {"replay", "--since", "yesterday"},
		"--until is before":         {"replay", "--since", "1h", "--until", "2h"},
		"--provider":                {"replay", "--provider", "No!"},
		"--server":                  {"subscribe", "--server", "http://a"},
		"--user":                    {"publish", "refresh-due"},
		"--tokens-file": {
			"publish", "login", "--user", "u", "--tokens-file", "/nowhere.json",
		},
		"no settings file":     {"-c", "x.yaml", "dev"},
		"--lifetime":           {"dev", "--lifetime", "1s"},
		"--client-secret-file": {"stand-in", "--client-secret-file", "/nowhere"},
	} {
		want(t, nil, exitUsage, says, args...)
	}
	want(t, nil, exitFailed, "RENEWD_NATS_URL", "subscribe", "--server", "nats://127.0.0.1:1")
}
