package natsd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit"
)

// inClear names a file of the store that shows the word; empty: none does.
func inClear(t *testing.T, folder, word string) (found string) {
	t.Helper()
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte(word)) {
			found = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// opened connects to a server of the configuration. The test's end, or stop, ends both.
func opened(t *testing.T, c natsd.Config) (js jetstream.JetStream, stop func()) {
	t.Helper()
	s := start(t, c)
	nc, err := s.Connect()
	if err == nil {
		js, err = jetstream.New(nc)
	}
	if err != nil {
		t.Fatal(err)
	}
	return js, func() {
		nc.Close()
		s.Shutdown()
	}
}

// fill makes streams of each kind that renewd has, with a gap, an acknowledged message, a timer and
// a message whose time has come.
func fill(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	ctx := t.Context()
	for _, c := range []jetstream.StreamConfig{
		{Name: "KEPT", Subjects: []string{"kept.*"}, MaxAge: time.Hour * 1000, AllowMsgTTL: true},
		{Name: "WORK", Subjects: []string{"work.*"}, Retention: jetstream.WorkQueuePolicy},
		{
			Name: "TIMERS", Subjects: []string{"timer.*", "due.*"}, MaxMsgsPerSubject: 1,
			AllowMsgSchedules: true,
		},
		{Name: "NEW", Subjects: []string{"new.*"}},
		{Name: "DRAINED", Subjects: []string{"drained.*"}, Retention: jetstream.WorkQueuePolicy},
		{Name: "PURGED", Subjects: []string{"purged.*"}},
	} {
		if _, err := js.CreateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 50 {
		for _, front := range []string{"kept", "work"} {
			text := fmt.Appendf(nil, "canary %d", n)
			if _, err := js.Publish(ctx, fmt.Sprintf("%s.canary-%d", front, n), text); err != nil {
				t.Fatal(err)
			}
		}
	}
	short := nats.NewMsg("kept.short")
	short.Header.Set("Nats-TTL", "1s")
	timer := nats.NewMsg("timer.canary")
	at := time.Now().Add(48 * time.Hour).UTC().Format(time.RFC3339)
	timer.Header.Set("Nats-Schedule", "@at "+at)
	timer.Header.Set("Nats-Schedule-Target", "due.canary")
	for _, m := range []*nats.Msg{short, timer} {
		if _, err := js.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := js.Stream(ctx, "KEPT")
	if err == nil {
		err = kept.DeleteMsg(ctx, 7)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		for _, subject := range []string{"drained.canary", "purged.canary"} {
			if _, err := js.Publish(ctx, subject, []byte("canary")); err != nil {
				t.Fatal(err)
			}
		}
	}
	purged, err := js.Stream(ctx, "PURGED")
	if err == nil {
		err = purged.Purge(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	work(t, js, "WORK", 1)
	work(t, js, "DRAINED", 5)
}

// work makes a consumer, and acknowledges some messages.
func work(t *testing.T, js jetstream.JetStream, stream string, n int) {
	t.Helper()
	c, err := js.CreateConsumer(t.Context(), stream, jetstream.ConsumerConfig{
		Durable: "worker", AckPolicy: jetstream.AckExplicitPolicy,
	})
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		m, err := c.Next()
		if err == nil {
			err = m.DoubleAck(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// check looks whether all that fill made is there.
func check(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	for name, want := range map[string]struct{ first, last uint64 }{
		"KEPT": {1, 50}, "WORK": {2, 50}, "TIMERS": {1, 1},
	} {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for seq := want.first; seq <= want.last; seq++ {
			m, err := s.GetMsg(t.Context(), seq)
			if gone := name == "KEPT" && seq == 7; gone {
				if !errors.Is(err, jetstream.ErrMsgNotFound) {
					t.Errorf("what was deleted: %v", err)
				}
			} else if err != nil {
				t.Errorf("%s %d: %v", name, seq, err)
			} else if name != "TIMERS" && string(m.Data) != fmt.Sprintf("canary %d", seq-1) {
				t.Errorf("%s %d: %s", name, seq, m.Data)
			}
		}
	}
	for name, last := range map[string]uint64{"NEW": 0, "DRAINED": 5, "PURGED": 5} {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if i := s.CachedInfo().State; i.Msgs != 0 || i.LastSeq != last {
			t.Errorf("%s holds %d, and ends at %d", name, i.Msgs, i.LastSeq)
		}
	}
	// The server's counts lag behind.
	testkit.Eventually(t, "the consumer is at 1, and 49 wait", func() bool {
		c, err := js.Consumer(t.Context(), "WORK", "worker")
		return err == nil && c.CachedInfo().AckFloor.Stream == 1 && c.CachedInfo().NumPending == 49
	})
}

var fileKey = secret.New("a key of the files")

// All that is in the files is there after they were encrypted, none of it in clear, and only the
// key opens it.
func TestFilesAreEncryptedInTheirPlace(t *testing.T) {
	accounts := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(accounts, []byte(`accounts {
  RENEWD: { jetstream: enabled, users: [{ user: "renewd", password: "a" }] }
  APP: { users: [{ user: "app", password: "b" }] }
}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, auth := range map[string]natsd.Auth{
		"one account": {User: "u", Password: secret.New("p")}, "accounts": {Accounts: accounts},
	} {
		t.Run(name, func(t *testing.T) { filesAreEncrypted(t, auth) })
	}
}

func filesAreEncrypted(t *testing.T, auth natsd.Auth) {
	folder := t.TempDir()
	c := natsd.Config{StoreDir: folder, Auth: auth}
	js, stop := opened(t, c)
	fill(t, js)
	sealed := c
	sealed.Key = fileKey
	_, err := natsd.Encrypt(t.Context(), sealed, "key", []byte("sealed"))
	if !errors.Is(err, natsd.ErrInUse) {
		t.Errorf("while a server runs: %v", err)
	}
	stop()
	if inClear(t, folder, "canary") == "" {
		t.Fatal("nothing to find in files that are not encrypted")
	}

	none, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := natsd.Encrypt(none, sealed, "key", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cut short: %v", err)
	}
	js, stop = opened(t, c)
	check(t, js)
	stop()

	done, err := natsd.Encrypt(t.Context(), sealed, "key", []byte("sealed"))
	if err != nil || done.Streams != 6 || done.Messages < 99 {
		t.Fatalf("%+v, %v", done, err)
	}
	if found := inClear(t, folder, "canary"); found != "" {
		t.Errorf("in clear: %s", found)
	}
	if raw, err := os.ReadFile(filepath.Join(folder, "key")); string(raw) != "sealed" {
		t.Errorf("the key: %s, %v", raw, err)
	}
	for range 2 {
		js, stop = opened(t, sealed)
		check(t, js)
		stop()
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 3 { // jetstream, the lock, the key
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// An Encrypt that ended at any step is undone or finished by the next start, and never leaves half
// of both.
func TestAnEncryptionCutShortIsSettled(t *testing.T) {
	plain := t.TempDir()
	c := natsd.Config{StoreDir: plain}
	js, stop := opened(t, c)
	fill(t, js)
	stop()
	encrypted := t.TempDir()
	if err := os.CopyFS(encrypted, os.DirFS(plain)); err != nil {
		t.Fatal(err)
	}
	sealed := natsd.Config{StoreDir: encrypted, Key: fileKey}
	if _, err := natsd.Encrypt(t.Context(), sealed, "key", []byte("sealed")); err != nil {
		t.Fatal(err)
	}
	// What is where, after each step: p is plain, e encrypted.
	for what, c := range map[string]struct {
		put  map[string]string
		key  secret.Value
		says string
	}{
		"copied": {put: map[string]string{"jetstream": "p", "encrypting/jetstream": "p"}},
		"read back": {put: map[string]string{
			"jetstream": "p", "encrypting/jetstream": "e", "encrypting/key": "k",
		}},
		"out of its place": {key: fileKey, put: map[string]string{
			"jetstream-plain": "p", "encrypting/jetstream": "e", "encrypting/key": "k",
		}},
		"half in its place": {key: fileKey, put: map[string]string{
			"jetstream-plain": "p", "jetstream": "e", "encrypting/key": "k",
		}},
		"in its place": {key: fileKey, put: map[string]string{
			"jetstream-plain": "p", "jetstream": "e", "key": "k",
		}},
		"run by an older version": {says: "are both there", put: map[string]string{
			"jetstream-plain": "p", "jetstream": "p", "encrypting/jetstream": "e",
		}},
	} {
		t.Run(what, func(t *testing.T) {
			folder := t.TempDir()
			for path, kind := range c.put {
				to := filepath.Join(folder, path)
				if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
					t.Fatal(err)
				}
				var err error
				switch kind {
				case "p":
					err = os.CopyFS(to, os.DirFS(filepath.Join(plain, "jetstream")))
				case "e":
					err = os.CopyFS(to, os.DirFS(filepath.Join(encrypted, "jetstream")))
				default:
					err = os.WriteFile(to, []byte("sealed"), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			release, err := natsd.Hold(folder)
			if c.says != "" {
				if err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err == nil {
				err = release()
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, left := range []string{"encrypting", "jetstream-plain"} {
				if _, err := os.Stat(filepath.Join(folder, left)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", left, err)
				}
			}
			_, err = os.Stat(filepath.Join(folder, "key"))
			if there := err == nil; there == c.key.IsZero() {
				t.Errorf("the key is there: %t", there)
			}
			js, stop := opened(t, natsd.Config{StoreDir: folder, Key: c.key})
			check(t, js)
			stop()
		})
	}
}
