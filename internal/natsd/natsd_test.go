package natsd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, c natsd.Config) *natsd.Server {
	t.Helper()
	if c.StoreDir == "" {
		c.StoreDir = t.TempDir()
	}
	s, err := natsd.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

func stored(t *testing.T, nc *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateOrUpdateStream(t.Context(), jetstream.StreamConfig{
		Name:     "S",
		Subjects: []string{"s"},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "s", nil); err != nil {
		t.Fatal(err)
	}
}

func TestInProcessOnly(t *testing.T) {
	s := start(t, natsd.Config{})
	if url := s.ClientURL(); url != "" {
		t.Errorf("ClientURL = %q of a server that does not listen", url)
	}
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	stored(t, nc)
}

func TestAuth(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := pair.PublicKey()
	keys, err := natsd.ParseNkeys([]byte("# services\n\n" + public + "  # billing\n"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		auth natsd.Auth
		show nats.Option
	}{
		"nothing":  {natsd.Auth{}, nil},
		"token":    {natsd.Auth{Token: secret.New("t0ken")}, nats.Token("t0ken")},
		"password": {natsd.Auth{User: "u", Password: secret.New("pw")}, nats.UserInfo("u", "pw")},
		"nkey":     {natsd.Auth{Nkeys: keys}, nats.Nkey(public, pair.Sign)},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, natsd.Config{Listen: "127.0.0.1:0", Auth: c.auth})
			inside, err := s.Connect()
			if err != nil {
				t.Fatal(err)
			}
			defer inside.Close()
			stored(t, inside)
			var show []nats.Option
			if c.show != nil {
				show = append(show, c.show)
				if nc, err := nats.Connect(s.ClientURL()); err == nil {
					nc.Close()
					t.Error("a client that shows nothing got in")
				}
			}
			outside, err := nats.Connect(s.ClientURL(), show...)
			if err != nil {
				t.Fatal(err)
			}
			defer outside.Close()
			stored(t, outside)
		})
	}
}

// accountsOf is a file with an account for renewd, and one for a service that may publish one
// subject there.
const accountsOf = `
server_name: theirs
jetstream { store_dir: "/nowhere" }
port: 1
accounts {
  RENEWD: {
    jetstream: enabled
    users: [{ user: "renewd", password: "a", permissions: {
      publish: { allow: ["kept.>", "$JS.API.>"] }, subscribe: { allow: ["_INBOX.>"] } } }]
    exports: [{ service: "from.app.x", accounts: [APP] }]
  }
  APP: {
    users: [{ user: "app", password: "b" }]
    imports: [{ service: { account: RENEWD, subject: "from.app.x" }, to: "x" }]
  }
}`

// With a file of accounts this process is renewd's own user, and every other client is what the
// file says.
func TestAccounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte(accountsOf), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, natsd.Config{Listen: "127.0.0.1:0", Auth: natsd.Auth{Accounts: file}})
	own, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	js, err := jetstream.New(own)
	if err == nil {
		_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{
			Name:     "S",
			Subjects: []string{"kept.>", "from.*.x"},
		})
	}
	if err == nil {
		_, err = js.Publish(t.Context(), "kept.1", nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = js.UpdateStream(t.Context(), jetstream.StreamConfig{
		Name: "S", Subjects: []string{"kept.>", "from.*.x"}, MaxAge: time.Hour,
	})
	if err != nil {
		t.Errorf("this process may not adapt its own stream: %v", err)
	}
	if err := errors.Join(own.Publish("other", nil), own.Flush()); err != nil ||
		!errors.Is(own.LastError(), nats.ErrPermissionViolation) {
		t.Errorf("this process may do more than its user: %v, %v", err, own.LastError())
	}
	if nc, err := nats.Connect(s.ClientURL()); err == nil {
		nc.Close()
		t.Error("a client that shows nothing got in")
	}
	app, err := nats.Connect(s.ClientURL(), nats.UserInfo("app", "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	if m, err := app.Request("x", nil, 5*time.Second); err != nil ||
		!strings.Contains(string(m.Data), `"stream":"S"`) {
		t.Errorf("the service's publish was not stored: %v", err)
	}
	if _, err := app.Request("kept.2", nil, 5*time.Second); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a publish of the service beyond its import: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	nobody := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(
		nobody, []byte(`accounts { APP: { users: [{ user: "app", password: "b" }] } }`), 0o600,
	); err != nil {
		t.Fatal(err)
	}
	unset, short := filepath.Join(t.TempDir(), "nats.conf"), filepath.Join(t.TempDir(), "nats.conf")
	for file, password := range map[string]string{unset: "", short: "hunter2"} {
		text := fmt.Sprintf(`accounts { RENEWD: { users: [{ user: "renewd", password: %q }] } }`,
			password)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	running := t.TempDir()
	start(t, natsd.Config{StoreDir: running})
	token := secret.New("t")
	for name, c := range map[string]struct {
		config natsd.Config
		says   string
	}{
		"no folder": {natsd.Config{}, "RENEWD_DATA_DIR"},
		"all interfaces": {
			natsd.Config{StoreDir: t.TempDir(), Listen: ":0"}, "RENEWD_NATS_LISTEN",
		},
		"beyond loopback": {
			natsd.Config{StoreDir: t.TempDir(), Listen: "0.0.0.0:0"}, "clients must authenticate",
		},
		"a name": {
			natsd.Config{StoreDir: t.TempDir(), Listen: "nats.example.com:4222"},
			"RENEWD_NATS_LISTEN",
		},
		"no port": {
			natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1"}, "want host:port",
		},
		"bad port": {
			natsd.Config{StoreDir: t.TempDir(), Listen: "127.0.0.1:99999"}, "want a port",
		},
		"port in use": {
			natsd.Config{StoreDir: t.TempDir(), Listen: taken.Addr().String()},
			"address already in use",
		},
		"folder in use":   {natsd.Config{StoreDir: running}, "in use by another renewd"},
		"folder not ours": {natsd.Config{StoreDir: "/dev/null/x"}, "/dev/null"},
		"two kinds of auth": {
			natsd.Config{
				StoreDir: t.TempDir(),
				Auth:     natsd.Auth{Token: token, Nkeys: []string{"U"}},
			}, "not several",
		},
		"no accounts": {
			natsd.Config{StoreDir: t.TempDir(), Auth: natsd.Auth{Accounts: "/nowhere/nats.conf"}},
			"/nowhere/nats.conf",
		},
		"not our accounts": {
			natsd.Config{StoreDir: t.TempDir(), Auth: natsd.Auth{Accounts: nobody}},
			"no account has the user renewd",
		},
		"accounts, no word": {
			natsd.Config{
				StoreDir: t.TempDir(),
				Listen:   "127.0.0.1:0",
				Auth:     natsd.Auth{Accounts: unset},
			}, "user renewd: its password is empty",
		},
		"accounts, a word": {
			natsd.Config{
				StoreDir: t.TempDir(),
				Listen:   "0.0.0.0:0",
				Auth:     natsd.Auth{Accounts: short},
			}, "want 16 or more",
		},
		"user, no password": {
			natsd.Config{StoreDir: t.TempDir(), Auth: natsd.Auth{User: "u"}}, "go together",
		},
		"JetStream blocked": {natsd.Config{StoreDir: blocked(t)}, "storage directory"},
		"not ready in time": {
			natsd.Config{StoreDir: t.TempDir(), ReadyTimeout: -1}, "give it longer",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := natsd.Start(t.Context(), c.config)
			if err == nil {
				s.Shutdown()
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q, want one that says %q", err, c.says)
			}
		})
	}
}

// blocked is a folder in which JetStream cannot make its own.
func blocked(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := writeFile(filepath.Join(dir, "jetstream")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestParseNkeysKeepsSeedsSecret(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := pair.Seed()
	if _, err := natsd.ParseNkeys(append([]byte("#\n"), seed...)); err == nil ||
		!strings.Contains(err.Error(), "line 2") || strings.Contains(err.Error(), string(seed)) {
		t.Errorf("ParseNkeys of a seed = %v", err)
	}
	if _, err := natsd.ParseNkeys([]byte("# nothing\n")); err == nil {
		t.Error("a file without a key was taken")
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	var log strings.Builder
	s, err := natsd.Start(t.Context(), natsd.Config{
		StoreDir: dir,
		Logger:   slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	s.Shutdown() // again, does no harm
	if _, err := s.Connect(nats.Timeout(time.Second)); err == nil {
		t.Error("connected to a server that has ended")
	}
	if text := log.String(); !strings.Contains(text, "embedded NATS server is ready") ||
		strings.Contains(text, "level=ERROR") {
		t.Errorf("log: %s", text)
	}
	start(t, natsd.Config{StoreDir: dir}) // the folder is free again
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if s, err := natsd.Start(ctx, natsd.Config{StoreDir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v, %v", s, err)
	}
	start(t, natsd.Config{StoreDir: dir}) // nothing was left behind
}

func writeFile(path string) error { return os.WriteFile(path, nil, 0o600) }

// An encrypted server leaves nothing in clear when it ends, and what was scheduled comes all the
// same: the index of schedules, which is in clear, can be made again.
func TestSchedulesOutliveTheirIndex(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a [folder]")
	config := natsd.Config{StoreDir: folder, Key: secret.New("a key of the files")}
	s := start(t, config)
	connect := func() jetstream.JetStream {
		t.Helper()
		nc, err := s.Connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		return js
	}
	js := connect()
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "T", Subjects: []string{"timer.*", "due.*"}, AllowMsgSchedules: true,
	}); err != nil {
		t.Fatal(err)
	}
	timer := nats.NewMsg("timer.canary")
	timer.Header.Set("Nats-Schedule",
		"@at "+time.Now().Add(3*time.Second).UTC().Format(time.RFC3339))
	timer.Header.Set("Nats-Schedule-Target", "due.canary")
	if _, err := js.PublishMsg(t.Context(), timer); err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	files := 0
	err := filepath.WalkDir(folder, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if files++; strings.Contains(string(raw), "canary") {
			t.Errorf("%s is in clear", path)
		}
		return err
	})
	if err != nil || files < 3 {
		t.Fatalf("%d files, %v", files, err)
	}
	s = start(t, config)
	js = connect()
	stream, err := js.Stream(t.Context(), "T")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"due.*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Next(jetstream.FetchMaxWait(time.Minute)); err != nil {
		t.Errorf("the timer never fired: %v", err)
	}
}
