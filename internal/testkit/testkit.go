// Package testkit has tools for tests of many packages: to wait without a sleep, to receive in
// time, to read a log, and to find a program.
//
// The package never ships: only tests import it, and its folders hold servers and suites for tests.
// Nothing started here outlives its call.
package testkit

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// Patience is how long a test waits before it fails: long enough for a busy machine.
const Patience = time.Minute

// Receive takes the next value of a channel. Without a value in time the test fails.
func Receive[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(Patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

// Eventually polls until ok returns true. If ok is not true in time, the test fails and names what.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(Patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// Program returns the path of a program the test needs, by the first of these names found. Without
// the program the test fails in CI, since a test that never runs proves nothing. Elsewhere the test
// is skipped.
func Program(t testing.TB, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	const missing = "%s is not installed: scripts/setup.sh installs it"
	if os.Getenv("CI") != "" {
		t.Fatalf(missing, names[0])
	}
	t.Skipf(missing, names[0])
	return ""
}

// Logs collects log lines. Safe for concurrent use.
type Logs struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *Logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// Has reports whether a text was logged.
func (l *Logs) Has(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// Logger writes to l.
func (l *Logs) Logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }
