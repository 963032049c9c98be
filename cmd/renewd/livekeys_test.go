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

	"github.com/renewd/renewd/internal/seal"
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
	first, err := makeKeys(path, noon)
	first = mustRing(t, first, err)
	put := func(ring *seal.Keyring) {
		t.Helper()
		if err := writeKeys(path, ring); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		live := newLiveKeys(path, first)
		var published atomic.Int64
		var down atomic.Bool
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
			})
		}()
		look := func() {
			<-time.After(keysEvery + time.Millisecond)
			synctest.Wait()
		}
		added, err := first.Rotate(noon)
		added = mustRing(t, added, err)
		put(added)
		look()
		if ids := live.ids(); len(ids) != 4 || published.Load() != 0 || len(live.changed) != 1 {
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
		if ids := live.ids(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		look()
		if ids := live.ids(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Fresh keys seal only once each worker has them, and no login is lost meanwhile.
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
	ring, err := loadKeys(file(1))
	ring = mustRing(t, ring, err)
	if keys := ring.Keys(); len(keys) != 4 || slices.ContainsFunc(keys, func(k seal.KeyInfo) bool { return k.Next }) {
		t.Errorf("got %+v", keys)
	}
}
