// Package mariatest runs a real MariaDB for tests: the installed MariaDB, on a Unix socket, in a
// folder removed with the server.
//
// The package never ships, downloads nothing, and touches no other server. A server ends with the
// test that started it.
package mariatest

import (
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// Start runs a server for the test, and returns the address of its empty database, shop, in
// renewd's form. Without an installed MariaDB the test fails in CI, and is skipped elsewhere.
func Start(t testing.TB) (address string) {
	t.Helper()
	program := testkit.Program(t, "mariadbd", "/usr/sbin/mariadbd")
	dir, err := os.MkdirTemp("", "maria") // short: a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	attributes := owner(t, dir)
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = dir, attributes
		// Two servers with one folder for temporary files may take each other's files away.
		cmd.Env = append(cmd.Environ(), "TMPDIR="+dir)
		return cmd
	}
	data, socket := filepath.Join(dir, "data"), filepath.Join(dir, "s")
	install := run("mariadb-install-db", "--no-defaults", "--datadir="+data,
		"--auth-root-authentication-method=normal", "--skip-test-db")
	if said, err := install.CombinedOutput(); err != nil {
		t.Fatalf("mariadb-install-db: %v\n%s", err, said)
	}
	init := filepath.Join(dir, "init.sql")
	if err := os.WriteFile(init, []byte("CREATE DATABASE shop;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	server, err := proc.Start(run(program, "--no-defaults", "--datadir="+data, "--socket="+socket,
		"--skip-networking", "--init-file="+init, "--innodb-flush-log-at-trx-commit=0",
		"--log-error="+filepath.Join(dir, "log"), "--innodb-buffer-pool-size=64M"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(server.Pid(), syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		<-server.Ended()
	})
	testkit.Eventually(t, "MariaDB's socket", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			err = c.Close()
		}
		return err == nil
	})
	return "mysql://root@localhost/shop?tls=false&socket=" + socket
}

// owner gives a folder to a user who may run a database, which root may not.
func owner(t testing.TB, dir string) *syscall.SysProcAttr {
	t.Helper()
	if os.Getuid() != 0 {
		return &syscall.SysProcAttr{}
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}
