package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

// A worker unwraps its file when that has changed, not each time that it looks.
func TestAWorkerUnwrapsWhatChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	count, fail := filepath.Join(dir, "count"), filepath.Join(dir, "fail")
	unwrap := settings.Command{"sh", "-c", `echo x >>"$0"; test ! -e "$1" && rev`, count, fail}
	file := keyfile.File{
		Path: filepath.Join(dir, "keys"), Unwrap: unwrap, Wrap: settings.Command{"rev"},
	}
	runs := func() int {
		t.Helper()
		raw, err := os.ReadFile(count)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(raw, []byte("x"))
	}
	ring, err := file.Make(t.Context(), time.Now())
	live := NewLiveKeys(keyfile.Files{file}, mustRing(t, ring, err), nil)
	look := func(more int, fails bool) {
		t.Helper()
		before := runs()
		for range 3 {
			if _, err := live.read(t.Context(), nil); (err != nil) != fails {
				t.Errorf("got %v", err)
			}
		}
		if got := runs() - before; got != more {
			t.Errorf("unwrapped %d times, want %d", got, more)
		}
	}
	look(1, false)
	look(0, false)
	next, err := ring.Rotate(time.Now())
	if err := file.Write(t.Context(), mustRing(t, next, err)); err != nil {
		t.Fatal(err)
	}
	look(1, false)
	if opens, _ := live.IDs(); len(opens) != 4 {
		t.Errorf("keys %q", opens)
	}
	if next, err = next.Promote(); err != nil {
		t.Fatal(err)
	}
	if err := file.Write(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fail, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	look(1, true)
	live.last[0].at = live.last[0].at.Add(-unwrapEvery)
	look(1, true)
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	look(0, true)
	live.last[0].at = live.last[0].at.Add(-unwrapEvery)
	look(1, false)
	if !bytes.Equal(live.JWKS(), next.JWKS()) {
		t.Error("the promotion was not taken up")
	}
}

// A process takes up what its file has now, and nothing that would lose a key.
func TestLiveKeysFollowTheirFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	noon := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	first, err := keyfile.File{Path: path}.Make(t.Context(), noon)
	first = mustRing(t, first, err)
	put := func(ring *seal.Keyring) {
		t.Helper()
		if err := (keyfile.File{Path: path}).Write(context.Background(), ring); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		names := pseudonym.New(nil, nil)
		live := NewLiveKeys(keyfile.Files{{Path: path}}, first, names)
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
			}, func(_ context.Context, id string) (bool, error) {
				return id == retired.Load(), nil
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
		if ids, _ := live.IDs(); len(ids) != 4 || published.Load() != 0 || len(live.changed) != 1 {
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
		if ids, _ := live.IDs(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		look()
		if ids, _ := live.IDs(); len(ids) != 4 {
			t.Errorf("keys were lost: %q are left", ids)
		}
		login := first.Keys()[0].ID
		rest, err := promoted.Retire(login)
		put(mustRing(t, rest, err))
		look()
		if ids, seals := live.IDs(); len(ids) != 4 || len(seals) != 2 {
			t.Errorf("a key is gone that nobody retired: %q are left", ids)
		}
		retired.Store(login)
		look()
		ids, seals := live.IDs()
		if len(ids) != 3 || slices.Contains(ids, login) || len(seals) != 2 {
			t.Errorf("a key that was retired is still among %q", ids)
		}
		store := first.Keys()[1].ID
		rest, err = rest.Retire(store)
		put(mustRing(t, rest, err))
		retired.Store(store)
		look()
		got, want := names.Of("jane"), pseudonym.Hash(rest.NamesKey(), "jane")
		if got != want || want == pseudonym.Hash(first.NamesKey(), "jane") {
			t.Errorf("without the oldest store key a user is %s, "+
				"and at a worker that starts now %s", got, want)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
