package main

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// stats is what the stand-in was asked.
func (s standInProcess) stats(t *testing.T) (got standin.Stats) {
	t.Helper()
	res, err := http.Get("http://" + s.addr + "/_admin/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	return got
}

// embedded are settings of a renewd with all in one folder.
func embedded(t *testing.T, folder string, standIn standInProcess) []string {
	return []string{
		"RENEWD_DATA_DIR=" + folder, "RENEWD_NATS_LISTEN=" + proc.FreeAddrFor(t),
		"RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_FLOOR=1s",
	}
}

// The way of docs/backup.md: back up, lose the folder, put the copy in its place and the keyring
// beside it, and go on.
func TestBackup(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	folder, copied := t.TempDir(), filepath.Join(t.TempDir(), "deep", "copy")
	env := embedded(t, folder, standIn)
	tokens := func() string { return write(t, "tokens.json", standIn.login(t, "jane")) }
	jane := func(args ...string) []string { return append(args, "--user", "jane", "--wait") }
	renew := jane("publish", "refresh-due", "--want", "tokens")

	_, stop := stoppable(t, env, `renewd is up.* http=(\S+)`, "serve")
	want(t, env, exitDone, "user.synced", jane("publish", "login", "--tokens-file", tokens())...)
	want(t, env, exitDone, "tokens renewed", renew...)
	want(t, env, exitFailed, "stop it first", "backup", copied)
	if _, err := os.Stat(filepath.Dir(copied)); err == nil {
		t.Error("a refused backup left something behind")
	}
	stop()
	var got backup
	out := want(t, env, exitDone, "NOT in the copy", "backup", copied, "-o", "json")
	if line, _, _ := strings.Cut(out, "\n"); json.Unmarshal([]byte(line), &got) != nil ||
		got.Files == 0 || got.Bytes == 0 || len(got.LeftOut) != 2 {
		t.Errorf("got %s", out)
	}
	checkCopy(t, copied, got.Files)
	want(t, env, exitUsage, "is there already", "backup", copied)

	fresh := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(fresh, os.DirFS(copied)); err != nil {
		t.Fatal(err)
	}
	env = embedded(t, fresh, standIn)
	want(t, env, exitUsage, "is not the keyring", "serve") // it has made one that opens nothing
	keys := readAll(t, filepath.Join(folder, "keys.json"))
	if err := os.WriteFile(filepath.Join(fresh, "keys.json"), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, env)
	want(t, env, exitDone, "tokens renewed", renew...)
	if s := standIn.stats(t); s.Reuse != 0 || s.Refused != 0 {
		t.Errorf("the provider saw %+v", s)
	}
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// checkCopy looks for the keyring, and for files that others may read.
func checkCopy(t *testing.T, folder string, files int) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if e.IsDir() {
			return nil
		}
		files--
		if _, err := seal.ParseKeyring(readAll(t, path)); err == nil {
			t.Errorf("%s is a keyring", path)
		}
		return nil
	})
	if err != nil || files != 0 {
		t.Errorf("%v; %d files more were told than there are", err, files)
	}
}

func TestBackupUsage(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	env := []string{"RENEWD_DATA_DIR=" + folder}
	elsewhere := append(env, "RENEWD_NATS_URL=nats://127.0.0.1:1")
	want(t, elsewhere, exitUsage, "docs/backup.md", "backup", filepath.Join(t.TempDir(), "copy"))
	want(t, env, exitUsage, "nothing to back up", "backup", filepath.Join(t.TempDir(), "copy"))
	want(t, env, exitUsage, "inside data_dir", "backup", filepath.Join(folder, "copy"))
	want(t, env, exitUsage, "is there already", "backup", folder)

	// The keyring stays out also where it lies among what is copied, and PostgreSQL is named.
	ring := filepath.Join(folder, daemon.NATSFolder, "jetstream", "ring.json")
	if err := os.MkdirAll(filepath.Dir(ring), 0o700); err != nil {
		t.Fatal(err)
	}
	logins := filepath.Join(filepath.Dir(ring), "logins.json")
	env = append(env, "RENEWD_KEYS_FILE="+ring, "RENEWD_LOGIN_KEYS_FILE="+logins,
		"RENEWD_DATABASE_URL=postgres://r:canary@127.0.0.1/x")
	want(t, env, exitDone, "", "keys", "new")
	copied := filepath.Join(t.TempDir(), "copy")
	out := want(t, env, exitDone, "pg_dump", "backup", copied+string(filepath.Separator))
	if strings.Contains(out, "canary") || !strings.Contains(out, "the login keys, "+logins) {
		t.Errorf("the password got out, or a file is not named: %s", out)
	}
	checkCopy(t, copied, 1) // the lock
}
