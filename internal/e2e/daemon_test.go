package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/proc"
)

// binary builds renewd once for all tests of this package, as `make build` does, and returns where
// the binary is.
var binary = sync.OnceValues(func() (string, error) { return built("renewd", "./cmd/renewd") })

// built is the program of a package that go.mod reaches, rebuilt if its sources have changed.
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

// command is renewd with these arguments, only these settings, and a new working folder.
func command(t *testing.T, settings []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(must(binary())(t), args...)
	cmd.Env = append(withoutSettings(os.Environ()), settings...)
	cmd.Dir = t.TempDir()
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	return cmd
}

// process is a running program.
type process struct{ *proc.Process }

// start starts a program, which is ended with the test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := must(proc.Start(cmd))(t)
	t.Cleanup(p.Kill)
	return &process{p}
}

// running returns an error if the program has ended, so that waiting is in vain.
func (p *process) running() error {
	if p.Running() {
		return nil
	}
	return hopeless{fmt.Errorf("the program ended at its start (%v): see what it said", p.Wait())}
}

// stop ends renewd as an operator would, and fails the test unless renewd ends cleanly.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.Stop(drainTimeout); err != nil {
		t.Errorf("renewd ended with %v, want exit code 0", err)
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

// serve starts renewd with an embedded NATS server, on free ports, with a new data folder and the
// given settings file. It waits until renewd says that it is ready, and ends it with the test.
func serve(t *testing.T, settings string, environ ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "renewd.yaml")
	if err := os.WriteFile(file, []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	d := &daemon{
		http: proc.FreeAddrFor(t),
		nats: proc.FreeAddrFor(t),
		data: filepath.Join(dir, "data"),
	}
	environ = append(environ, "RENEWD_CONFIG="+file, "RENEWD_DATA_DIR="+d.data,
		"RENEWD_HTTP_ADDR="+d.http, "RENEWD_NATS_LISTEN="+d.nats)
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

// withoutSettings drops what a developer's own shell sets for renewd.
func withoutSettings(environ []string) (kept []string) {
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "RENEWD_") {
			kept = append(kept, kv)
		}
	}
	return kept
}
