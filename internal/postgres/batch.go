package postgres

import (
	"context"
	"errors"
	"sync"

	"github.com/renewd/renewd/internal/grant"
)

// errClosed answers calls after Close.
var errClosed = errors.New("store is closed")

// batcher collects calls and runs the calls together. Calls with the same key never share a batch:
// the later call waits for the next batch, so a statement touches each row once.
type batcher[In, Out any] struct {
	most int                // calls in a batch
	key  func(In) grant.Key // what must be unique in a batch
	// runs one statement; outs answer the ins in order; ErrRefused: nothing was done
	run func([]In) (outs []Out, _ error)

	mu      sync.Mutex
	waiting []*call[In, Out]
	free    int // statements that may still be started
	closed  bool
	wg      sync.WaitGroup
}

type call[In, Out any] struct {
	in   In
	out  Out
	err  error
	done chan struct{}
}

// do runs one call in some batch. ctx ends the wait, not the statement. After such an end the
// caller cannot know whether the statement took effect.
func (b *batcher[In, Out]) do(ctx context.Context, in In) (out Out, err error) {
	if err := context.Cause(ctx); err != nil {
		return out, err
	}
	c := &call[In, Out]{in: in, done: make(chan struct{})}
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return out, errClosed
	}
	b.waiting = append(b.waiting, c)
	if b.free > 0 {
		b.free--
		b.wg.Go(b.work)
	}
	b.mu.Unlock()
	select {
	case <-c.done:
		return c.out, c.err
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
}

// work runs batches until nothing waits.
func (b *batcher[In, Out]) work() {
	for {
		batch := b.next()
		if batch == nil {
			return
		}
		b.answer(batch)
	}
}

// answer runs a batch. If the database refuses a batch for the data of one call, the batch is run
// again by halves, so only the refused call fails.
func (b *batcher[In, Out]) answer(batch []*call[In, Out]) {
	ins := make([]In, len(batch))
	for i, c := range batch {
		ins[i] = c.in
	}
	outs, err := b.run(ins)
	if half := len(batch) / 2; half > 0 && errors.Is(err, grant.ErrRefused) {
		b.answer(batch[:half])
		b.answer(batch[half:])
		return
	}
	for i, c := range batch {
		if c.err = err; err == nil {
			c.out = outs[i]
		}
		close(c.done)
	}
}

// next takes the calls of one batch, oldest first, or gives the worker's place back.
func (b *batcher[In, Out]) next() []*call[In, Out] {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		b.free++
		return nil
	}
	keys := make(map[grant.Key]bool, min(len(b.waiting), b.most))
	var batch, rest []*call[In, Out]
	for _, c := range b.waiting {
		k := b.key(c.in)
		if keys[k] || len(batch) == b.most {
			rest = append(rest, c)
			continue
		}
		keys[k] = true
		batch = append(batch, c)
	}
	b.waiting = rest
	return batch
}

// close lets no new call in and waits for the calls inside.
func (b *batcher[In, Out]) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}
