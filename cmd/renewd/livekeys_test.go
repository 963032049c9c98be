package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
)

// Fresh keys seal only once each worker has them, and no login is lost meanwhile. Then workers take
// all records away from the old store key, and it can be retired.
func TestKeysArePromotedOnceEveryWorkerHasThem(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	env := func(i int) []string {
		return []string{
			"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dirs[i],
			"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
			"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_STREAMS_APPLY=true",
			"RENEWD_HTTP_ADDR=127.0.0.1:0",
		}
	}
	file := func(i int) string { return filepath.Join(dirs[i], "keys.json") }
	give := func() {
		t.Helper()
		raw, err := os.ReadFile(file(0))
		if err == nil {
			err = os.WriteFile(file(1), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	signIn := func(user string) {
		t.Helper()
		tokens := write(t, "tokens.json", standIn.login(t, user))
		want(t, env(0), exitDone, "user.synced", "publish", "login", "--user", user,
			"--tokens-file", tokens, "--wait")
	}
	want(t, env(0), exitDone, "", "keys", "new")
	give()
	start(t, env(0))
	start(t, env(1))
	signIn("u1")
	before, err := os.ReadFile(file(0))
	if err != nil {
		t.Fatal(err)
	}
	want(t, env(0), exitDone, "", "keys", "rotate")
	want(t, env(0), exitFailed, "lacks key", "keys", "promote")
	signIn("u2")
	give()
	promoteAtTwo(t, env(0))
	signIn("u3")
	give()
	signIn("u4")
	ring, err := keyfile.File{Path: file(1)}.Load(t.Context())
	ring = mustRing(t, ring, err)
	keys := ring.Keys() // login, login, store, store; the older first
	if len(keys) != 4 || slices.ContainsFunc(keys, func(k seal.KeyInfo) bool { return k.Next }) {
		t.Errorf("got %+v", keys)
	}
	old := keys[2].ID
	retired := false
	for end := time.Now().Add(2 * time.Minute); !retired && time.Now().Before(end); <-nextLook() {
		code, _, errs := runIn(t, env(0), "keys", "retire", old)
		wait := strings.Contains(errs, "is needed by") || strings.Contains(errs, "does not say")
		if retired = code == exitDone; !retired && !wait {
			t.Fatalf("retire: %s", errs)
		}
	}
	if !retired {
		t.Fatal("never retired")
	}
	stale := write(t, "stale.json", string(before))
	want(t, append(env(0), "RENEWD_KEYS_FILE="+stale), exitUsage, "which was retired", "serve")
	give()
	end := time.Now().Add(time.Minute)
	for has(t, url, old) && time.Now().Before(end) {
		<-nextLook()
	}
	if has(t, url, old) {
		t.Error("a worker keeps the key that was retired")
	}
	for _, user := range []string{"u1", "u2", "u3", "u4"} {
		renew := []string{"publish", "refresh-due", "--user", user, "--want", "tokens", "--wait"}
		want(t, env(0), exitDone, "user.synced", renew...)
	}
}

// nextLook is when to look again.
func nextLook() <-chan time.Time { return time.After(100 * time.Millisecond) }

// has reports whether some worker says that it has the key.
func has(t *testing.T, url, id string) bool {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	engine, err := daemon.ClientEngine(nc, new(settings.Settings))
	if err != nil {
		t.Fatal(err)
	}
	workers, err := engine.Workers(t.Context())
	if err != nil || len(workers) != 2 {
		t.Fatalf("%d workers, %v", len(workers), err)
	}
	knows := func(w stream.Worker) bool { return slices.Contains(w.Keys, id) }
	return slices.ContainsFunc(workers, knows)
}

// promoteAtTwo promotes the fresh keys once both workers have them.
func promoteAtTwo(t *testing.T, environ []string) {
	t.Helper()
	promoted := false
	for end := time.Now().Add(time.Minute); !promoted && time.Now().Before(end); <-nextLook() {
		code, out, errs := runIn(t, environ, "keys", "promote")
		if promoted = code == exitDone; promoted && !strings.Contains(out, "at 2 workers") {
			t.Errorf("promoted: %s", out)
		}
		if !promoted && !strings.Contains(errs, "lacks key") {
			t.Fatalf("promote: %s", errs)
		}
	}
	if !promoted {
		t.Fatal("never promoted")
	}
}
