package refresh

import (
	"context"
	"slices"
	"sync"
)

// backlog bounds the pairs that a provider has answered with and that are not saved yet. They are
// what a kill -9 costs where the provider forgives nothing, so tokens are presented no faster than
// the store keeps up. A presentation calls room, and then either answered and saved or none. It is
// safe for concurrent use.
type backlog struct {
	limit int

	mu      sync.Mutex
	unsaved int
	waiting []chan struct{} // the longest first
}

// room waits until one more token may be presented, or returns the cause of ctx's end.
func (b *backlog) room(ctx context.Context) error {
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
		b.none() // it may have been let in just then
		return context.Cause(ctx)
	}
}

// answered: a pair came and is to be saved.
func (b *backlog) answered() { b.end(1) }

// saved: it is saved, or given up.
func (b *backlog) saved() { b.end(-1) }

// none: no pair came.
func (b *backlog) none() { b.end(0) }

// end lets in as many as there is room for. Whoever is let in comes back here, so nobody waits for
// ever.
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
