package reconcile

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
)

// Waker brings forward the timers of grants that wait without need: the provider's trouble is over,
// or its settings have changed. A Waker is safe for concurrent use, and may run twice.
type Waker struct {
	Store  grant.Store
	Engine *stream.Engine
}

// wakesPerSecond spreads the wakes: all the grants become due at once.
const wakesPerSecond = 1000

// Wake walks over the provider's grants and brings forward the grants that were put off, or that
// failed before since. A grant that has no timer, or is due, is left alone. Wake returns how many
// grants it brought forward.
func (w Waker) Wake(ctx context.Context, provider string, since time.Time) (int, error) {
	pace := rate.NewLimiter(wakesPerSecond, wakesPerSecond/10)
	woken := 0
	for page, err := range grant.Pages(ctx, w.Store) {
		if err != nil {
			return woken, fmt.Errorf("list grants: %w", err)
		}
		n, err := w.page(ctx, page, provider, since, pace)
		woken += n
		if err != nil {
			return woken, err
		}
	}
	return woken, nil
}

func (w Waker) page(
	ctx context.Context, page []grant.ListEntry, provider string, since time.Time,
	pace *rate.Limiter,
) (int, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(armsInFlight)
	var moved atomic.Int64
	now := w.Engine.Now()
	for _, g := range page {
		if g.Err != nil || g.Provider != provider || g.Check() != nil || !g.WaitsSince(since, now) {
			continue
		}
		if err := pace.Wait(ctx); err != nil {
			break
		}
		group.Go(func() error {
			done, err := w.Engine.Hasten(ctx, g.Key, now)
			if done {
				moved.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	return int(moved.Load()), err
}
