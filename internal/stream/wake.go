package stream

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/grant"
)

// Waker brings forward the timers of grants that wait for nothing any more: the provider's trouble
// is over, or its settings have changed. Safe for concurrent use, and to run twice.
type Waker struct {
	Store  grant.Store
	Engine *Engine
}

// wakesPerSecond spreads them: all become due at once.
const wakesPerSecond = 1000

// Wake walks over the provider's grants and has those fire whose trouble is of before a time. A grant
// that has no timer, or is due, is left alone. It returns how many it brought forward.
func (w Waker) Wake(ctx context.Context, provider string, since time.Time) (int, error) {
	pace := rate.NewLimiter(wakesPerSecond, wakesPerSecond/10)
	woken := 0
	for cursor := ""; ; {
		page, next, err := w.Store.List(ctx, cursor, 500)
		if err != nil {
			return woken, fmt.Errorf("list grants: %w", err)
		}
		n, err := w.page(ctx, page, provider, since, pace)
		woken += n
		if err != nil || next == "" {
			return woken, err
		}
		cursor = next
	}
}

func (w Waker) page(ctx context.Context, page []grant.Listed, provider string, since time.Time, pace *rate.Limiter) (int, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(armsInFlight)
	var moved atomic.Int64
	now := w.Engine.Now()
	for _, g := range page {
		if g.Err != nil || g.Provider != provider || checkKey(g.Key) != nil || !g.WaitsSince(since, now) {
			continue
		}
		if err := pace.Wait(ctx); err != nil {
			break
		}
		group.Go(func() error {
			done, err := w.Engine.hasten(ctx, g.Key, now)
			if done {
				moved.Add(1)
			}
			return err
		})
	}
	err := group.Wait()
	return int(moved.Load()), err
}

// hasten has the grant's timer fire at a time, if it would some time later. It does what it would have
// done; whoever moved it meanwhile has done so. One that fires soon is left alone, since the server
// may be about to: see firing.
func (e *Engine) hasten(ctx context.Context, k grant.Key, at time.Time) (done bool, err error) {
	timer, due, err := e.waits(ctx, k)
	if err != nil {
		return false, fmt.Errorf("look for the timer of %s: %w", k, err)
	}
	if len(due) > 0 || !timer.ours || timer.At.Before(at.Add(unfired)) {
		return false, nil
	}
	h := maps.Clone(timer.header)
	maps.Copy(h, workHeader(timer.Work.PutOff(at)))
	schedule(h, at, e.fires(k, timer.Work))
	return e.putAgain(ctx, standing{subject: timer.subject, header: h, sequence: timer.sequence})
}
