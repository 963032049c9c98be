// Package redistest runs a real Redis for tests: the installed Redis, on a Unix socket, in a folder
// removed with the server.
//
// The package never ships, downloads nothing, and touches no other server. A server ends with the
// test that started it.
package redistest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// Start runs a server with these further arguments for the test, and returns its address in
// renewd's form. Without an installed Redis the test fails in CI, and is skipped elsewhere.
func Start(t testing.TB, args ...string) (address string) {
	t.Helper()
	program := testkit.Program(t, "redis-server")
	dir, err := os.MkdirTemp("", "redis") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(program, append([]string{"--port", "0", "--unixsocket", socket,
		"--save", "", "--dir", dir, "--logfile", filepath.Join(dir, "log")}, args...)...)
	cmd.Dir = dir
	server, err := proc.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Kill)
	testkit.Eventually(t, "Redis's socket", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			err = c.Close()
		}
		return err == nil
	})
	return "unix://" + socket
}
