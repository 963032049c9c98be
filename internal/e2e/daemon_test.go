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

// binary builds renewd once for all tests of this package, as `make build` does, and returns where it is.
var binary = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs(filepath.Join(root, ".cache", "e2e", "renewd"))
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "./cmd/renewd")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// daemon is a running `renewd serve`.
type daemon struct {
	cmd  *exec.Cmd
	exit chan error // holds the process's end once it came
	http string
	nats string // where its embedded NATS server listens
	data string
}

const (
	startTimeout = time.Minute
	drainTimeout = 40 * time.Second
)

// serve starts renewd with an embedded NATS server, on free ports, with a data folder of its own and the given settings
// file, and waits until it says that it is ready. It is ended with the test.
func serve(t *testing.T, settings string, environ ...string) *daemon {
	t.Helper()
	path := must(binary())(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "renewd.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{exit: make(chan error, 1), http: freePort(t), nats: freePort(t), data: filepath.Join(dir, "data")}
	d.cmd = exec.Command(path, "serve")
	d.cmd.Env = append(withoutSettings(os.Environ()), "RENEWD_CONFIG="+file, "RENEWD_DATA_DIR="+d.data, "RENEWD_HTTP_ADDR="+d.http, "RENEWD_NATS_LISTEN="+d.nats)
	d.cmd.Env = append(d.cmd.Env, environ...)
	d.cmd.Dir = dir
	d.cmd.Stdout, d.cmd.Stderr = t.Output(), t.Output()
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { d.exit <- d.cmd.Wait() }()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill()
		<-d.exit
	})
	eventually(t, startTimeout, d.ready(t.Context()))
	return d
}

// ready asks /readyz.
func (d *daemon) ready(ctx context.Context) func() error {
	return func() error {
		select {
		case err := <-d.exit:
			d.exit <- err
			return hopeless{fmt.Errorf("renewd ended at its start (%v): see what it said", err)}
		default:
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

// stop ends renewd as an operator would and wants a clean end.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-d.exit:
		d.exit <- err
		if err != nil {
			t.Errorf("renewd ended with %v, want exit code 0", err)
		}
	case <-time.After(drainTimeout):
		t.Fatalf("renewd did not end within %v of SIGTERM", drainTimeout)
	}
}

// freePort returns a loopback address that nobody listens on. Somebody may take it before its user does; renewd then says
// so at its start.
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
