package pull

import (
	"context"
	"time"
)

// Backoff doubles from 100 ms to 1 s: a server that is back must not wait for its client.
type Backoff struct{ next time.Duration }

// Wait waits for the next step, or until ctx ends.
func (b *Backoff) Wait(ctx context.Context) {
	b.next = min(max(2*b.next, 100*time.Millisecond), time.Second)
	select {
	case <-ctx.Done():
	case <-time.After(b.next):
	}
}

// Waited reports whether b has waited since it was new.
func (b *Backoff) Waited() bool { return b.next > 0 }
