package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary builds renewd once for all tests of this package, as `make build` does, and returns where
// it is.
var binary = sync.OnceValues(func() (string, error) { return built("renewd", "./cmd/renewd") })

// built is the program of a package that go.mod reaches, made anew where its sources have changed.
func built(name, from string) (string, error) {
	path, err := filepath.Abs(filepath.Join(root, ".cache", "e2e", name))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, from)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
}

// command is renewd with these arguments, only these settings, and a working folder of its own.
func command(t *testing.T, settings []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(must(binary())(t), args...)
	cmd.Env = append(withoutSettings(os.Environ()), settings...)
	cmd.Dir = t.TempDir()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	return cmd
}

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	exit chan error // holds the process's end once it came
}

// start starts a program, which is ended with the test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, exit: make(chan error, 1)}
	go func() { p.exit <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.exit
	})
	return p
}

// running returns an error, after which waiting is in vain, if the program has ended.
func (p *process) running() error {
	select {
	case err := <-p.exit:
		p.exit <- err
		return hopeless{fmt.Errorf("%s ended at its start (%v): see what it said", p.cmd, err)}
	default:
		return nil
	}
}

// stop ends renewd as an operator would and wants a clean end.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-p.exit:
		p.exit <- err
		if err != nil {
			t.Errorf("renewd ended with %v, want exit code 0", err)
		}
	case <-time.After(drainTimeout):
		t.Fatalf("renewd did not end within %v of SIGTERM", drainTimeout)
	}
}

// daemon is a running `renewd serve`.
type daemon struct {
	*process
	http string
	nats string // where its embedded NATS server listens
	data string
}

const (
	startTimeout = time.Minute
	drainTimeout = 40 * time.Second
)

// serve starts renewd with an embedded NATS server, on free ports, with a data folder of its own
// and the given settings file, and waits until it says that it is ready. It is ended with the test.
func serve(t *testing.T, settings string, environ ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "renewd.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{http: freePort(t), nats: freePort(t), data: filepath.Join(dir, "data")}
	environ = append(environ, "RENEWD_CONFIG="+file, "RENEWD_DATA_DIR="+d.data, "RENEWD_HTTP_ADDR="+d.http, "RENEWD_NATS_LISTEN="+d.nats)
	d.process = start(t, command(t, environ, "serve"))
	eventually(t, startTimeout, d.ready(t.Context()))
	return d
}

// ready asks /readyz.
func (d *daemon) ready(ctx context.Context) func() error {
	return func() error {
		if err := d.running(); err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.http+"/readyz", nil)
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: status %d", res.StatusCode)
		}
		return nil
	}
}

// freePort returns a loopback address that nobody listens on. Somebody may take it before its user
// does; renewd then says so at its start.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// withoutSettings drops what a developer's own shell sets for renewd.
func withoutSettings(environ []string) (kept []string) {
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "RENEWD_") {
			kept = append(kept, kv)
		}
	}
	return kept
}
