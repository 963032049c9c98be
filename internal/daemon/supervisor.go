package daemon

import (
	"context"
	"errors"
	"sync"
)

// Service is something that runs until its context ends. An error says that the service ended by
// itself.
type Service func(context.Context) error

// Supervise runs all parts until ctx ends or a part fails. Then it ends the parts layer by layer,
// the last layer first: a lower layer goes on until all layers above are done. It returns all
// failures.
func Supervise(ctx context.Context, layers ...[]Service) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var mu sync.Mutex
	var failures []error
	groups := make([]sync.WaitGroup, len(layers))
	stops := make([]context.CancelFunc, len(layers))
	for i, layer := range layers {
		// Not a child of ctx: Supervise orders its end.
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

// atEnd is a part that only calls f at the end.
func atEnd(f func()) Service {
	return func(ctx context.Context) error {
		<-ctx.Done()
		f()
		return nil
	}
}
