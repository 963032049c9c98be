package refresh

import (
	"context"
	"slices"
	"sync"
)

// backlog bounds the pairs that a provider has answered with and that are not saved yet. A kill -9
// loses these pairs where the provider forgives nothing, so tokens are presented no faster than the
// store keeps up. backlog is a semaphore of pairs, not of presentations: a presentation calls
// acquire, and then either hold and release, or cancel. backlog is safe for concurrent use.
type backlog struct {
	limit int

	mu      sync.Mutex
	unsaved int
	waiting []chan struct{} // the longest wait first
}

// acquire waits until another token may be presented, or returns the cause of ctx's end.
func (b *backlog) acquire(ctx context.Context) error {
	b.mu.Lock()
	if b.unsaved < b.limit && len(b.waiting) == 0 {
		b.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	b.waiting = append(b.waiting, turn)
	b.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		if i := slices.Index(b.waiting, turn); i >= 0 {
			b.waiting = slices.Delete(b.waiting, i, i+1)
		}
		b.mu.Unlock()
		b.cancel() // end may have let this presentation in just then
		return context.Cause(ctx)
	}
}

// hold: a pair came and is to be saved.
func (b *backlog) hold() { b.end(1) }

// release: the pair is saved, or given up.
func (b *backlog) release() { b.end(-1) }

// cancel: no pair came.
func (b *backlog) cancel() { b.end(0) }

// end lets in as many presentations as there is room for. Each of these comes back to end, so no
// presentation waits without an end.
func (b *backlog) end(change int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unsaved += change
	n := min(max(b.limit-b.unsaved, 0), len(b.waiting))
	for _, turn := range b.waiting[:n] {
		close(turn)
	}
	b.waiting = slices.Delete(b.waiting, 0, n)
}
