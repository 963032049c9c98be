package realidp

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/publishers"
)

const (
	providerID = "corp"
	userCount  = 50
)

// world is one provider, renewd on a separate NATS server, and users who are signed in at both.
type world struct {
	*front
	told    *ledger
	nats    string
	dir     string
	workers []*worker
	users   []string
	account map[string]string // the account's name, by user
}

func newWorld(t *testing.T, k kind, workers int) *world {
	t.Helper()
	w := &world{
		front:   startFront(t, k),
		told:    newLedger(),
		dir:     t.TempDir(),
		account: map[string]string{},
	}
	t.Cleanup(func() {
		if t.Failed() {
			w.told.look(func() { t.Log(w.told.events()) })
		}
		t.Logf("%s answered:\n%s", k.name, w.rec.summary())
	})
	server := must(natsd.Start(t.Context(),
		natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:0"}))(t)
	t.Cleanup(server.Shutdown)
	w.nats = server.ClientURL()
	w.configure(t, k.auth, clientSecret)
	if out, err := command(t, w.environ(), "keys", "new").CombinedOutput(); err != nil {
		t.Fatalf("keys new: %v\n%s", err, out)
	}
	w.start(t, workers)
	nc := must(nats.Connect(w.nats, nats.MaxReconnects(-1)))(t)
	t.Cleanup(nc.Close)
	follow(t, nc, w.told)
	w.signIn(t, nc)
	return w
}

// configure writes the settings file. Two refusals are seconds apart, so that no test waits for
// half a minute. Everything else is as shipped.
func (w *world) configure(t *testing.T, auth, secret string) {
	t.Helper()
	settings := fmt.Sprintf(`
providers:
  - id: %s
    preset: %s
    auth_url: %s
    client_id: %s
    allow_http_loopback: true
    policy:
      floor: 1s
      confirm_min: 3s
      confirm_max: 4s
%s`, providerID, w.preset, w.issuer(), clientID, w.policy)
	if auth != "" {
		settings += "    client_auth: " + auth + "\n"
	}
	if auth != "none" {
		settings += "    client_secret: " + secret + "\n"
	}
	if err := os.WriteFile(w.file("renewd.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) file(name string) string { return filepath.Join(w.dir, name) }

func (w *world) environ() []string {
	return []string{
		"RENEWD_CONFIG=" + w.file("renewd.yaml"), "RENEWD_NATS_URL=" + w.nats,
		"RENEWD_KEYS_FILE=" + w.file("keys.json"), "RENEWD_STREAMS_APPLY=true",
	}
}

// start starts that many workers with the settings file as it is now.
func (w *world) start(t *testing.T, workers int) {
	t.Helper()
	for range workers {
		w.workers = append(w.workers, serve(t, w.environ()))
	}
}

// stop stops all workers in order.
func (w *world) stop(t *testing.T) {
	t.Helper()
	for _, worker := range w.workers {
		worker.stop(t)
	}
	w.workers = nil
}

// signIn signs every user in at the provider, publishes the logins, and waits until renewd has
// answered each.
func (w *world) signIn(t *testing.T, nc *nats.Conn) {
	t.Helper()
	pub := must(publishers.New(nc, publishers.WithSource("/realidp")))(t)
	var names []string
	for n := range userCount {
		name := fmt.Sprintf("user-%02d", n)
		names = append(names, name)
		if err := w.enroll(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		user, tokens, err := w.provider.signIn(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		w.rec.own(user, tokens.RefreshToken)
		w.users, w.account[user] = append(w.users, user), name
		if _, err := pub.Login(t.Context(), providerID, user, tokens); err != nil {
			t.Fatal(err)
		}
	}
	w.told.await(t, func() error {
		return atLeast(len(w.told.known), userCount, "logins are answered")
	})
}

// renewedAgain waits until each of users was renewed n times more than it is now. It skips users
// whose session the provider has lost.
func (w *world) renewedAgain(t *testing.T, n int, users ...string) {
	t.Helper()
	before := w.told.generations()
	w.told.await(t, func() error {
		lost := w.rec.lostSessions()
		alive := slices.DeleteFunc(slices.Clone(users), func(user string) bool {
			return lost[user]
		})
		return w.told.reached(alive, func(user string) int { return before[user] + n })
	})
}

// check compares what happened with what must hold whatever the provider does. Exactly the given
// users were told to sign in again. No token was presented after it had been answered with a new
// one, and no token twice at a time.
func (w *world) check(t *testing.T, ended ...string) {
	t.Helper()
	lost := w.rec.lostSessions()
	t.Logf("%s lost %d sessions by itself", w.name, len(lost))
	w.told.look(func() {
		if err := w.told.tells(ended, lost); err != nil {
			t.Error(err)
		}
		for _, data := range w.told.rejected {
			t.Errorf("a message was rejected: %s", data)
		}
	})
	w.rec.look(func() {
		for _, wrong := range w.rec.wrong {
			t.Error(wrong)
		}
	})
}

// follow notes every outcome.
func follow(t *testing.T, nc *nats.Conn, told *ledger) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		err := consumers.Subscribe(ctx, nc, consumers.Subscription{StartAll: true}, told.note)
		if err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}
