package main

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/testkit/pgtest"
)

var databases pgtest.Pool

func TestMain(m *testing.M) { os.Exit(databases.Main(m)) }

// background runs a command until the test is over, and waits until it has said what pattern
// matches; it returns the first group.
func background(t *testing.T, env []string, pattern string, args ...string) string {
	t.Helper()
	said, _ := stoppable(t, env, pattern, args...)
	return said
}

// stoppable is background for a command that the test may end earlier, by stop.
func stoppable(
	t *testing.T, env []string, pattern string, args ...string,
) (said string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var out terminal
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append([]string{"renewd"}, args...), env, strings.NewReader(""), &out,
			&out)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-ended; code != exitDone {
			t.Errorf("renewd %s ended with %d:\n%s", args[0], code, out.String())
		}
	})
	t.Cleanup(stop)
	want := regexp.MustCompile(pattern)
	pause := func() { <-time.After(10 * time.Millisecond) }
	for end := time.Now().Add(time.Minute); time.Now().Before(end); pause() {
		if m := want.FindStringSubmatch(out.String()); m != nil {
			return m[1], stop
		}
		if len(ended) > 0 {
			break
		}
	}
	t.Fatalf("renewd %s never said %s:\n%s", args[0], pattern, out.String())
	return "", nil
}

// start starts renewd and returns where its HTTP is.
func start(t *testing.T, env []string) string {
	t.Helper()
	return background(t, env, `renewd is up.* http=(\S+)`, "serve")
}

// standInProcess is the stand-in command at work.
type standInProcess struct{ addr string }

func startStandIn(t *testing.T) standInProcess {
	t.Helper()
	return standInProcess{
		background(t, nil, `listens on http://(\S+)`, "stand-in", "--listen", "127.0.0.1:0"),
	}
}

func (s standInProcess) post(t *testing.T, path, user string) string {
	t.Helper()
	res, err := http.PostForm("http://"+s.addr+path, url.Values{"user": {user}})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d, %v", path, res.StatusCode, err)
	}
	return string(body)
}

func (s standInProcess) login(t *testing.T, user string) string {
	return s.post(t, "/_admin/login", user)
}

func (s standInProcess) end(t *testing.T, user string) { s.post(t, "/_admin/end", user) }

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustRing(t *testing.T, ring *seal.Keyring, err error) *seal.Keyring {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return ring
}
