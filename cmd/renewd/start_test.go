package main

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/keyfile"
)

// terminal is where a command under test writes to.
type terminal struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *terminal) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// until waits until the terminal shows text n times.
func (w *terminal) until(t *testing.T, text string, n int) {
	t.Helper()
	pause := func() { <-time.After(20 * time.Millisecond) }
	for end := time.Now().Add(time.Minute); time.Now().Before(end); pause() {
		if strings.Count(w.String(), text) >= n {
			return
		}
	}
	t.Fatalf("%q never came %d times:\n%s", text, n, w.String())
}

// The README's first command, twice on the same data.
func TestDev(t *testing.T) {
	environ := []string{
		"RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_NATS_LISTEN=127.0.0.1:0",
	}
	for range 2 {
		ctx, stop := context.WithCancel(t.Context())
		var out, errs terminal
		code := make(chan int, 1)
		go func() {
			code <- run(ctx,
				[]string{"renewd", "dev", "--users", "5", "--lifetime", "3s", "--end-every", "2s"},
				environ, nil, &out, &errs)
		}()
		out.until(t, "tokens renewed", 10)
		out.until(t, "user.reauth_required", 1)
		out.until(t, "publish refresh-due --user user-01", 1)
		stop()
		if c := <-code; c != exitDone {
			t.Errorf("exit code %d: %s", c, errs.String())
		}
		if s := errs.String(); strings.Contains(s, "level=ERROR") || strings.Contains(s, "panic") {
			t.Errorf("it said: %s", s)
		}
	}
}

// What cannot be reached at start is waited for, then named with the setting to correct.
func TestStartNamesWhatIsMissing(t *testing.T) {
	provider := []string{
		"RENEWD_AUTH_URL=https://auth.example.com", "RENEWD_CLIENT_ID=x",
		"RENEWD_START_TIMEOUT=1s", "RENEWD_HTTP_ADDR=127.0.0.1:0",
	}
	for name, tt := range map[string]struct {
		environ []string
		code    int
		says    []string
	}{
		"NATS": {
			append([]string{"RENEWD_NATS_URL=nats://127.0.0.1:1"}, provider...),
			exitFailed,
			[]string{"RENEWD_NATS_URL", "127.0.0.1:1"},
		},
		"PostgreSQL": {
			append([]string{"RENEWD_DATABASE_URL=postgres://renewd:canary@127.0.0.1:1/x"},
				provider...),
			exitFailed,
			[]string{"RENEWD_DATABASE_URL", "127.0.0.1:1"},
		},
		"no provider": {
			[]string{"RENEWD_HTTP_ADDR=127.0.0.1:0"},
			exitUsage,
			[]string{"RENEWD_AUTH_URL", "renewd dev"},
		},
		"no keyring": {
			append([]string{"RENEWD_NATS_URL=nats://127.0.0.1:1"}, provider...),
			exitUsage,
			[]string{"renewd keys new"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			environ := append([]string{"RENEWD_DATA_DIR=" + dir}, tt.environ...)
			if name == "NATS" {
				_, err := (keyfile.File{Path: dir + "/keys.json"}).Make(t.Context(), time.Now())
				if err != nil {
					t.Fatal(err)
				}
			}
			var out, errs terminal
			code := run(t.Context(), []string{"renewd", "serve"}, environ, nil, &out, &errs)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, want := range tt.says {
				if !strings.Contains(errs.String(), want) {
					t.Errorf("%q is not in: %s", want, errs.String())
				}
			}
			if strings.Contains(errs.String(), "canary") {
				t.Errorf("the password got out: %s", errs.String())
			}
		})
	}
}

// A provider that cannot be reached is told at the start, and not first when a renewal fails.
func TestServeWarnsOfAProviderThatDoesNotAnswer(t *testing.T) {
	t.Parallel()
	env := []string{
		"RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_PROVIDER_PRESET=oidc", "RENEWD_CLIENT_ID=x",
		"RENEWD_CLIENT_SECRET=made-up", "RENEWD_AUTH_URL=https://127.0.0.1:9",
	}
	got := background(t, env, `msg="a provider does not answer" provider=(\S+)`, "serve")
	if got != "propelauth" {
		t.Errorf("it names %s", got)
	}
}
