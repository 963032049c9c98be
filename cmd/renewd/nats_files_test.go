package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/seal"
)

// legible names a file below the folder that shows one of these words; empty: none does.
func legible(t *testing.T, folder string, words ...string) (found string) {
	t.Helper()
	read := 0
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if read += len(raw); err != nil {
			return err
		}
		for _, word := range words {
			if bytes.Contains(raw, []byte(word)) {
				found = path + ": " + word
			}
		}
		return nil
	})
	if err != nil || read < 1000 {
		t.Fatalf("%d bytes in %s, %v", read, folder, err)
	}
	return found
}

// The files of the embedded server are encrypted with a key that a rotation of the keyring leaves
// as it is, and that the keyring alone opens. Files that are there already are encrypted by a
// command.
func TestFilesOfTheEmbeddedServerAreEncrypted(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	apart := t.TempDir()
	keys := filepath.Join(apart, "keys.json")
	words := []string{"canary-user", "user.synced", "RENEWALS"}
	installation := func(folder string, more ...string) []string {
		return append(embedded(t, folder, standIn), append(more, "RENEWD_KEYS_FILE="+keys)...)
	}
	serve := func(env []string) (stop func()) {
		t.Helper()
		_, stop = stoppable(t, env, `renewd is up.* http=(\S+)`, "serve")
		return stop
	}
	signIn := func(env []string) {
		t.Helper()
		tokens := write(t, "tokens.json", standIn.login(t, "canary-user"))
		want(t, env, exitDone, "user.synced", "publish", "login", "--user", "canary-user",
			"--tokens-file", tokens, "--wait")
	}
	renew := func(env []string) {
		t.Helper()
		want(t, env, exitDone, "user.synced", "publish", "refresh-due", "--user", "canary-user",
			"--want", "tokens", "--wait")
	}

	plain := t.TempDir()
	env := installation(plain)
	stop := serve(env)
	signIn(env)
	stop()
	if legible(t, filepath.Join(plain, daemon.NATSFolder), words...) == "" {
		t.Error("this test finds nothing in files that are not encrypted")
	}
	env = append(env, "RENEWD_NATS_ENCRYPT=true")
	stop = serve(env)
	renew(env)
	is(t, diagnosis(t, env, exitDone)["NATS files"], admin.Warning, "renewd nats encrypt")
	want(t, env, exitFailed, "stop it first", "nats", "encrypt")
	stop()
	another := filepath.Join(apart, "another.json")
	want(t, []string{"RENEWD_KEYS_FILE=" + another}, exitDone, "", "keys", "new")
	want(t, append(slices.Clone(env), "RENEWD_KEYS_FILE="+another), exitUsage,
		"is not the keyring", "nats", "encrypt")
	want(t, env, exitDone, "encrypted ", "nats", "encrypt")
	if found := legible(t, filepath.Join(plain, daemon.NATSFolder), words...); found != "" {
		t.Errorf("in clear: %s", found)
	}
	want(t, env, exitUsage, "encrypted already", "nats", "encrypt")
	stop = serve(env)
	renew(env)
	is(t, diagnosis(t, env, exitDone)["NATS files"], admin.Fine, "encrypted, with a key")
	stop()

	folder := t.TempDir()
	env = installation(folder, "RENEWD_NATS_ENCRYPT=true")
	stop = serve(env)
	signIn(env)
	is(t, diagnosis(t, env, exitDone)["NATS files"], admin.Fine, "encrypted, with a key")
	want(t, env, exitDone, "", "keys", "rotate")
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-nextLook() {
		if code, _, _ := runIn(t, env, "keys", "promote"); code == exitDone {
			break
		}
	}
	var listed []listedKey
	out := want(t, env, exitDone, "", "keys", "list", "-o", "json", "--use", "store")
	if err := json.Unmarshal([]byte(out), &listed); err != nil || len(listed) != 2 ||
		!listed[1].Current {
		t.Fatalf("%v: %s", err, out)
	}
	old, retired := listed[0].ID, false
	for end := time.Now().Add(2 * time.Minute); !retired && time.Now().Before(end); <-nextLook() {
		code, _, errs := runIn(t, env, "keys", "retire", old)
		if retired = code == exitDone; !retired && !strings.Contains(errs, "is needed by") &&
			!strings.Contains(errs, "does not say") {
			t.Fatalf("retire: %s", errs)
		}
	}
	if sealed := readAll(t, filepath.Join(folder, daemon.NATSFolder, "renewd.key")); !retired ||
		seal.StoreKeyOf(sealed) != listed[1].ID {
		t.Errorf("retired %t, and the key of the files is sealed with %s, want %s", retired,
			seal.StoreKeyOf(sealed), listed[1].ID)
	}
	stop()
	if found := legible(t, filepath.Join(folder, daemon.NATSFolder), words...); found != "" {
		t.Errorf("in clear: %s", found)
	}
	env = installation(folder) // what is encrypted stays so
	stop = serve(env)
	renew(env)
	stop()

	copied := filepath.Join(t.TempDir(), "copy")
	want(t, env, exitDone, "NOT in the copy", "backup", copied)
	if found := legible(t, copied, words...); found != "" {
		t.Errorf("in clear in the backup: %s", found)
	}
	other := append(installation(copied), "RENEWD_KEYS_FILE="+filepath.Join(apart, "other.json"))
	want(t, other, exitUsage, "cannot be opened", "serve")
	env = installation(copied)
	serve(env)
	renew(env)
}

// Where the keyring is promoted while nothing runs, the next start seals the key again. What still
// is under an old key says so.
func TestTheKeyOfTheFilesKeepsItsStoreKey(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	env := append(embedded(t, t.TempDir(), standIn), "RENEWD_NATS_ENCRYPT=true")
	_, stop := stoppable(t, env, `renewd is up.* http=(\S+)`, "serve")
	stop()
	alone := append(env, "RENEWD_NATS_LISTEN=")
	want(t, alone, exitDone, "", "keys", "rotate")
	want(t, alone, exitDone, "", "keys", "promote")
	a := &app{name: "renewd", environ: env}
	conf, err := a.load(&cli{})
	if err != nil {
		t.Fatal(err)
	}
	before, err := daemon.FileKey(conf)
	if err != nil || before == "" {
		t.Fatal(before, err)
	}
	start(t, env)
	if now, err := daemon.FileKey(conf); err != nil || now == "" || now == before {
		t.Errorf("sealed with %q, before with %q, %v", now, before, err)
	}
	if err := os.WriteFile(filepath.Join(conf.DataDir, daemon.NATSFolder, "renewd.key"),
		[]byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	is(t, diagnosis(t, env, exitFailed)["NATS files"], admin.Broken, "is damaged")
	want(t, env, exitFailed, "is damaged", "keys", "retire", before)
}
