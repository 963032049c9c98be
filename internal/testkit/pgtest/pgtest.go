// Package pgtest runs a real PostgreSQL for tests, benchmarks and the chaos program. The newest
// PostgreSQL installed runs on a Unix socket or a loopback port, in a folder that is removed with
// the server.
//
// The package never ships in the product, downloads nothing, and touches no other server. A Server
// is safe for concurrent use. Its process ends with Stop, Kill, or this process.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Options are the settings of a server.
type Options struct {
	// Durable keeps fsync and synchronous_commit on, as in production. Default off: tests need no
	// disk.
	Durable bool
	// TCP listens on a loopback port too, for programs that connect through a proxy.
	TCP bool
}

// Server is a running PostgreSQL.
type Server struct {
	options Options
	bin     string // folder of the programs
	dir     string // data, socket, log
	port    int
	cred    *syscall.Credential
	more    []string // arguments from Reconfigure

	mu  sync.Mutex
	cmd *exec.Cmd
	end chan struct{}
}

// Start makes a new, empty server and waits until it answers.
func Start(o Options) (*Server, error) {
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "pg") // short: a socket's path has 107 bytes at most
	if err != nil {
		return nil, err
	}
	s := &Server{options: o, bin: bin, dir: dir, port: 5432}
	if err := s.setUp(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return s, s.Restart()
}

// ErrMissing: no PostgreSQL is installed.
var ErrMissing = errors.New("no PostgreSQL server found; install it, on Debian: apt-get install " +
	"postgresql")

func binaries() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if len(found) > 0 {
		return filepath.Dir(found[0]), nil
	}
	path, err := exec.LookPath("postgres")
	if err != nil {
		return "", ErrMissing
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

func version(path string) int {
	n, _ := strconv.Atoi(strings.Split(path, "/")[4])
	return n
}

func (s *Server) setUp() error {
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		for _, name := range []string{"postgres", "nobody"} {
			if u, err := user.Lookup(name); err == nil {
				uid, _ := strconv.ParseUint(u.Uid, 10, 32)
				gid, _ := strconv.ParseUint(u.Gid, 10, 32)
				s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
				break
			}
		}
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	if s.options.TCP {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		s.port = l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return err
		}
	}
	init := s.command("initdb", "-D", s.data(), "-U", "renewd", "-A", "trust", "-E", "UTF8",
		"--no-sync", "--locale=C")
	if out, err := init.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Tool is a client program installed with the server, such as pg_dump. The program runs as this
// process's user.
func (s *Server) Tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(s.bin, name), args...)
}

// Restart starts the server again after Stop or Kill, on the same data, and waits until it answers.
func (s *Server) Restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return nil
	}
	args := []string{
		"-D", s.data(), "-k", s.dir, "-p", strconv.Itoa(s.port), "-c", "max_connections=200", "-c",
		"listen_addresses=",
	}
	if s.options.TCP {
		args[len(args)-1] = "listen_addresses=127.0.0.1"
	}
	if !s.options.Durable {
		args = append(args, "-c", "fsync=off", "-c", "synchronous_commit=off", "-c",
			"full_page_writes=off")
	}
	args = append(args, s.more...)
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := s.command("postgres", args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	s.cmd, s.end = cmd, make(chan struct{})
	go func(end chan struct{}) {
		defer close(end)
		_ = cmd.Wait() // how the server ended does not matter: Stop or Kill ends it
	}(s.end)
	return s.ready()
}

func (s *Server) ready() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return conn.Close(ctx)
		}
		if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == pgerrRefused {
			return nil // Reconfigure lets this kind of connection in no more
		}
		select {
		case <-s.end:
			out, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("postgres ended at its start: %s", out)
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pgerrRefused is the error code of a server that refuses the kind of connection.
const pgerrRefused = "28000"

// Reconfigure starts the server again with more settings, each as NAME=VALUE. The settings hold
// until the server is removed.
func (s *Server) Reconfigure(settings ...string) error {
	s.Stop()
	for _, setting := range settings {
		s.more = append(s.more, "-c", setting)
	}
	return s.Restart()
}

// Replica starts another server that follows this one and takes no writes. It runs until Remove.
func (s *Server) Replica() (*Server, error) {
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	r := &Server{bin: s.bin, dir: dir, port: 5432, cred: s.cred}
	if err := r.follow(s); err != nil {
		r.Remove()
		return nil, err
	}
	return r, nil
}

// follow copies the server primary, and starts as its replica.
func (s *Server) follow(primary *Server) error {
	if s.cred != nil {
		if err := os.Chown(s.dir, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
			return err
		}
	}
	copies := s.command("pg_basebackup", "--dbname", primary.URL("postgres"), "--pgdata", s.data(),
		"--write-recovery-conf", "--checkpoint=fast", "--no-sync")
	if out, err := copies.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return s.Restart()
}

// Own copies a file to a place where only the server can read it, as PostgreSQL requires of its
// private key. It returns the copy's path.
func (s *Server) Own(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, filepath.Base(file))
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", err
	}
	if s.cred != nil {
		err = os.Chown(path, int(s.cred.Uid), int(s.cred.Gid))
	}
	return path, err
}

// URL is the address of a database on the server.
func (s *Server) URL(database string) string {
	if s.options.TCP {
		return fmt.Sprintf("postgres://renewd@127.0.0.1:%d/%s?sslmode=disable", s.port, database)
	}
	return fmt.Sprintf("postgres://renewd@/%s?host=%s&port=%d", database, s.dir, s.port)
}

// Pid is the server's process id; 0 while it does not run.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return 0
	}
	return s.cmd.Process.Pid
}

// Stop ends the server as an operator does (fast shutdown) and keeps its data.
func (s *Server) Stop() { s.signal(syscall.SIGINT) }

// Kill ends the server as a power cut does (immediate shutdown) and keeps its data.
func (s *Server) Kill() { s.signal(syscall.SIGQUIT) }

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig) // the process may be gone already
	<-s.end
	s.cmd = nil
}

// Remove stops the server and deletes its data.
func (s *Server) Remove() {
	s.Kill()
	os.RemoveAll(s.dir)
}

// Create makes an empty database and returns its name.
func (s *Server) Create(ctx context.Context) (name string, err error) {
	name = "t" + strings.ToLower(rand.Text())
	return name, s.exec(ctx, "CREATE DATABASE "+name)
}

// Drop removes a database and closes all connections to it.
func (s *Server) Drop(ctx context.Context, name string) error {
	return s.exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
}

func (s *Server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// Pool hands out databases on one server per test process. Declare a Pool in a test package, and
// let TestMain call Main.
type Pool struct {
	once   sync.Once
	server *Server
	err    error
}

// Main runs the package's tests and stops the server that the tests started, if any.
func (p *Pool) Main(m *testing.M) int {
	defer func() {
		if p.server != nil {
			p.server.Remove()
		}
	}()
	return m.Run()
}

// URL is the address of a new, empty database, which is dropped when the test ends. Without a
// PostgreSQL the test fails where CI is set, and is skipped elsewhere.
func (p *Pool) URL(t testing.TB) string {
	t.Helper()
	p.once.Do(func() { p.server, p.err = Start(Options{}) })
	if errors.Is(p.err, ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(p.err)
	}
	if p.err != nil {
		t.Fatal(p.err)
	}
	name, err := p.server.Create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.server.Drop(context.Background(), name); err != nil {
			t.Error(err)
		}
	})
	return p.server.URL(name)
}

// Replica is the address of a database on a server that follows the pool's and takes no writes. The
// test must have the database (URL). The server ends with the test.
func (p *Pool) Replica(t testing.TB, url string) string {
	t.Helper()
	r, err := p.server.Replica()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Remove)
	return strings.Replace(url, p.server.dir, r.dir, 1)
}

// Run runs a client program, such as pg_dump. If the program fails, the test fails with the
// program's output. The test must have a database (URL).
func (p *Pool) Run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := p.server.Tool(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// Script runs a file of SQL in a database, in one transaction, as the docs tell operators to.
func (p *Pool) Script(t testing.TB, url, file string) {
	t.Helper()
	flags := []string{"--set", "ON_ERROR_STOP=1", "--single-transaction", "--quiet"}
	p.Run(t, "psql", append(flags, "--file", file, url)...)
}

// As is the address of a database for another role. The server asks for no password.
func As(role, url string) string {
	return strings.Replace(url, "://renewd@", "://"+role+"@", 1)
}
