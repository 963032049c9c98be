package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// worker is a process of `renewd serve`.
type worker struct {
	*process
	http     string
	clock    string     // file with the offset of the worker's clock
	database *link.Link // the worker's way to PostgreSQL; nil without one
	held     atomic.Bool
}

// take reserves the worker for one fault, unless another fault holds it.
func (k *worker) take() bool { return k.held.CompareAndSwap(false, true) }

func (k *worker) release() { k.held.Store(false) }

func (w *world) startWorkers(ctx context.Context) error {
	if out, err := w.command(nil, "keys", "new").CombinedOutput(); err != nil {
		return fmt.Errorf("keys new: %w: %s", err, out)
	}
	ports, err := proc.FreePorts(w.Workers)
	if err != nil {
		return err
	}
	workers := make([]*worker, w.Workers)
	for i, port := range ports {
		name := fmt.Sprintf("worker-%d", i)
		k := &worker{
			http:  fmt.Sprintf("127.0.0.1:%d", port),
			clock: filepath.Join(w.dir, name+".clock"),
		}
		if w.database != nil {
			if k.database, err = w.databaseLink(); err != nil {
				return err
			}
		}
		k.process = &process{
			name: name,
			log:  filepath.Join(w.dir, name+".log"),
			make: func() *exec.Cmd { return w.command(k, "serve") },
		}
		workers[i] = k
	}
	w.workers = workers
	for _, k := range workers {
		if err := k.start(); err != nil {
			return err
		}
	}
	return w.workersReady(ctx, time.Minute)
}

func (w *world) databaseLink() (*link.Link, error) {
	u, err := url.Parse(w.database.URL("postgres"))
	if err != nil {
		return nil, err
	}
	return link.New(u.Host)
}

func (w *world) workersReady(ctx context.Context, limit time.Duration) error {
	for _, k := range w.workers {
		if err := eventually(ctx, limit, k.ready); err != nil {
			return fmt.Errorf("%s: %w", k.name, err)
		}
	}
	return nil
}

// ready asks /readyz.
func (k *worker) ready() error {
	if err := k.ended(); err != nil {
		return err
	}
	client := http.Client{Timeout: 3 * time.Second}
	res, err := client.Get("http://" + k.http + "/readyz")
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("/readyz: %w: status %d", errNotReady, res.StatusCode)
	}
	return nil
}

func (w *world) keysFile() string { return filepath.Join(w.dir, "keys.json") }

// keyring is the keyring for workers started now.
func (w *world) keyring() (*seal.Keyring, error) {
	raw, err := os.ReadFile(w.keysFile())
	if err != nil {
		return nil, err
	}
	return seal.ParseKeyring(raw)
}
