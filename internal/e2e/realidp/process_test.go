package realidp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

const root = "../../.."

// binary builds renewd once for all tests of this package and returns where the binary is.
var binary = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs(filepath.Join(root, ".cache", "realidp", "renewd"))
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

// command is renewd with these arguments and only these settings.
func command(t *testing.T, settings []string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(must(binary())(t), args...)
	for _, kv := range os.Environ() { // a developer's own shell may set some settings
		if !strings.HasPrefix(kv, "RENEWD_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, settings...)
	cmd.Dir = t.TempDir()
	return cmd
}

// worker is one `renewd serve`.
type worker struct {
	*proc.Process
	http string
}

// serve starts a worker and waits until it says that it is ready. It ends the worker with the test.
func serve(t *testing.T, settings []string) *worker {
	t.Helper()
	w := &worker{http: proc.FreeAddrFor(t)}
	cmd := command(t, append(settings, "RENEWD_HTTP_ADDR="+w.http), "serve")
	log := &lines{}
	cmd.Stdout, cmd.Stderr = log, log
	w.Process = must(proc.Start(cmd))(t)
	t.Cleanup(func() {
		w.Kill()
		if t.Failed() {
			t.Logf("renewd said at last:\n%s", log)
		}
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for {
		err := w.ready()
		if err == nil {
			return w
		}
		select {
		case <-w.Ended():
			t.Fatalf("renewd ended at its start: %v\n%s", w.Wait(), log)
		case <-limit:
			t.Fatalf("renewd is not ready: %v", err)
		case <-tick.C:
		}
	}
}

func (w *worker) ready() error {
	res, err := http.Get("http://" + w.http + "/readyz")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	return nil
}

// stop ends the worker as an operator would.
func (w *worker) stop(t *testing.T) {
	t.Helper()
	if err := w.Stop(patience); err != nil {
		t.Errorf("renewd ended with %v, want exit code 0", err)
	}
}

// answers waits until a server answers at this address, whatever the answer.
func answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		res, err := http.Get(address)
		if err == nil {
			return res.Body.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no answer: %w", err)
		case <-tick.C:
		}
	}
}

// said sends a request and decodes the JSON in the answer. If into is nil, any answer will do.
func said(c *http.Client, req *http.Request, into any) error {
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= http.StatusMultipleChoices {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL.Path, res.Status, text)
	}
	if err == nil && into != nil {
		err = json.Unmarshal(text, into)
	}
	return err
}

// lines keeps the end of what a process says, for a test that fails. Safe for concurrent use.
type lines struct {
	mu   sync.Mutex
	text []byte
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if most := 8000; len(l.text) > 2*most {
		l.text = append([]byte(nil), l.text[len(l.text)-most:]...)
	}
	return len(p), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}

// must(f())(t) is f's value; the test fails on its error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
