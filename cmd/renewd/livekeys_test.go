package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

func mustRing(t *testing.T, ring *seal.Keyring, err error) *seal.Keyring {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// A process takes up what its file has now, and nothing that would lose a key.
func TestLiveKeysFollowTheirFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	first, err := keyFile{path: path}.make(t.Context(), noon)
	first = mustRing(t, first, err)
	put := func(ring *seal.Keyring) {
		t.Helper()
		if err := (keyFile{path: path}).write(context.Background(), ring); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		names := pseudonym.New(nil, nil)
		live := newLiveKeys(keyFile{path: path}, first, names)
		var published atomic.Int64
		var down atomic.Bool
		var retired atomic.Value // the id of a key
		down.Store(true)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- live.watch(ctx, slog.New(slog.DiscardHandler), func(context.Context) error {
				if down.Load() {
					return errors.New("NATS is away")
				}
				published.Add(1)
				return nil
			}, func(_ context.Context, id string) (bool, error) { return id == retired.Load(), nil })
		}()
		look := func() {
			<-time.After(keysEvery + time.Millisecond)
			synctest.Wait()
		}
		added, err := first.Rotate(noon)
		added = mustRing(t, added, err)
		put(added)
		look()
		if ids, _ := live.ids(); len(ids) != 4 || published.Load() != 0 || len(live.changed) != 1 {
			t.Errorf("after a rotation: keys %q, published %d times", ids, published.Load())
		}
		promoted, err := added.Promote()
		promoted = mustRing(t, promoted, err)
		put(promoted)
		look()
		look()
		if string(live.JWKS()) != string(promoted.JWKS()) || published.Load() != 0 {
			t.Errorf("after a promotion without NATS: published %d times", published.Load())
		}
		down.Store(false)
		look()
		look()
		if published.Load() != 1 {
			t.Errorf("published %d times, want once, when NATS was back", published.Load())
		}
		put(first) // the backup of before, by mistake
		look()
		if ids, _ := live.ids(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		look()
		if ids, _ := live.ids(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		login := first.Keys()[0].ID
		rest, err := promoted.Retire(login)
		put(mustRing(t, rest, err))
		look()
		if ids, seals := live.ids(); len(ids) != 4 || len(seals) != 2 {
			t.Errorf("a key is gone that nobody retired: %q are left", ids)
		}
		retired.Store(login)
		look()
		if ids, seals := live.ids(); len(ids) != 3 || slices.Contains(ids, login) || len(seals) != 2 {
			t.Errorf("a key that was retired is still among %q", ids)
		}
		store := first.Keys()[1].ID
		rest, err = rest.Retire(store)
		put(mustRing(t, rest, err))
		retired.Store(store)
		look()
		if got, want := names.Of("jane"), pseudonym.Hash(rest.NamesKey(), "jane"); got != want || want == pseudonym.Hash(first.NamesKey(), "jane") {
			t.Errorf("without the oldest store key a user is %s, and at a worker that starts now %s", got, want)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Fresh keys seal only once each worker has them, and no login is lost meanwhile. Then workers take
// all records away from the old store key, and it can be retired.
func TestKeysArePromotedOnceEveryWorkerHasThem(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	dirs := []string{t.TempDir(), t.TempDir()}
	env := func(i int) []string {
		return []string{
			"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dirs[i], "RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
			"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_STREAMS_APPLY=true", "RENEWD_HTTP_ADDR=127.0.0.1:0",
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
		want(t, env(0), exitDone, "user.synced", "publish", "login", "--user", user, "--tokens-file", tokens, "--wait")
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
	ready := false
	for end := time.Now().Add(time.Minute); !ready && time.Now().Before(end); <-time.After(100 * time.Millisecond) {
		code, out, errs := runIn(t, env(0), "keys", "promote")
		if ready = code == exitDone; ready && !strings.Contains(out, "at 2 workers") {
			t.Errorf("promoted: %s", out)
		}
		if !ready && !strings.Contains(errs, "lacks key") {
			t.Fatalf("promote: %s", errs)
		}
	}
	if !ready {
		t.Fatal("never promoted")
	}
	signIn("u3")
	give()
	signIn("u4")
	ring, err := keyFile{path: file(1)}.load(t.Context())
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
	for end := time.Now().Add(time.Minute); has(t, url, old) && time.Now().Before(end); <-nextLook() {
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
	engine, err := clientEngine(nc, new(configuration))
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
