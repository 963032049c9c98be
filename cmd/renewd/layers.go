package main

import (
	"context"
	"errors"
	"sync"
)

// part is something that runs until its context ends. An error says that it ended by itself.
type part func(context.Context) error

// runLayers runs all parts until ctx ends or one of them fails. Then it ends them layer by layer,
// the last layer first: what others stand on goes on until they are done. It returns what failed.
func runLayers(ctx context.Context, layers ...[]part) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var mu sync.Mutex
	var failures []error
	groups := make([]sync.WaitGroup, len(layers))
	stops := make([]context.CancelFunc, len(layers))
	for i, layer := range layers {
		// Not a child of ctx: its end is this function's to order.
		under, stop := context.WithCancel(context.WithoutCancel(ctx))
		stops[i] = stop
		for _, p := range layer {
			groups[i].Go(func() {
				if err := p(under); err != nil {
					mu.Lock()
					failures = append(failures, err)
					mu.Unlock()
					fail(err)
				}
			})
		}
	}
	<-ctx.Done()
	for i := len(layers) - 1; i >= 0; i-- {
		stops[i]()
		groups[i].Wait()
	}
	return errors.Join(failures...)
}

// atEnd is a part that does nothing but this at the end.
func atEnd(f func()) part {
	return func(ctx context.Context) error {
		<-ctx.Done()
		f()
		return nil
	}
}
