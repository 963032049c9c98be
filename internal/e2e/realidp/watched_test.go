package realidp

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"
)

// watched is state that others wait for. Each change wakes all who wait.
type watched struct {
	mu      *sync.Mutex
	changed *chan struct{}
}

func newWatched() watched {
	first := make(chan struct{})
	return watched{&sync.Mutex{}, &first}
}

// update runs f alone and wakes all who wait.
func (w watched) update(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(*w.changed)
	*w.changed = make(chan struct{})
}

// look runs f alone. f changes nothing.
func (w watched) look(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// patience is the longest wait for anything. It only bounds a test that fails.
const patience = 3 * time.Minute

// await waits until check, which runs alone, returns nil. If that takes too long, it fails the test
// with the last error of check.
func (w watched) await(t *testing.T, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		w.mu.Lock()
		err, changed := check(), *w.changed
		w.mu.Unlock()
		if err == nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", patience, err)
		}
	}
}

// atLeast is nil once n has reached want.
func atLeast(n, want int, what string) error {
	if n >= want {
		return nil
	}
	return fmt.Errorf("%d of %d %s", n, want, what)
}
