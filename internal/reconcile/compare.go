package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
)

// Comparison is how a store compares with the outcomes and pairs published from it.
type Comparison struct {
	Grants int `json:"grants"`
	Live   int `json:"live"`
	// Superseded grants hold a refresh token that is known to have been replaced. Such a token is
	// not presented.
	Superseded int `json:"superseded"`
	// Waiting are the superseded grants that a worker has met already: they wait for a login or an
	// operator.
	Waiting int `json:"waiting"`
	// Behind are grants older than their published state, with the same refresh token. These grants
	// just go on.
	Behind     int `json:"behind"`
	Unreadable int `json:"unreadable"` // no key opens these grants
	// Outcomes is how many outcomes there are to compare with. Without outcomes, a restored store
	// looks like any other store.
	Outcomes uint64 `json:"outcomes"`
}

// comparisons is how many grants are compared at a time.
const comparisons = 32

// Compare walks the store and compares every grant with the streams. Compare writes nothing.
// superseded, if not nil, is told of each superseded grant, with the latest known mark of the
// grant. superseded is called concurrently, and its error ends the walk.
func Compare(
	ctx context.Context, s grant.Store, e *stream.Engine,
	superseded func(context.Context, grant.Grant, grant.Mark) error,
) (Comparison, error) {
	if superseded == nil {
		superseded = func(context.Context, grant.Grant, grant.Mark) error { return nil }
	}
	w := comparer{store: s, engine: e, superseded: superseded}
	var err error
	if w.Outcomes, err = e.CountOutcomes(ctx); err != nil {
		return w.Comparison, err
	}
	for page, err := range grant.Pages(ctx, s) {
		if err != nil {
			return w.Comparison, fmt.Errorf("list grants: %w", err)
		}
		if err := w.page(ctx, page); err != nil {
			return w.Comparison, err
		}
	}
	return w.Comparison, nil
}

// comparer is the state of one Compare.
type comparer struct {
	store      grant.Store
	engine     *stream.Engine
	superseded func(context.Context, grant.Grant, grant.Mark) error

	mu sync.Mutex
	Comparison
}

func (w *comparer) page(ctx context.Context, page []grant.ListEntry) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(comparisons)
	for _, l := range page {
		group.Go(func() error {
			switch {
			case l.Err != nil:
				w.count(l.Grant, &w.Unreadable)
				return nil
			case l.Status == grant.Forgotten:
				return nil // a tombstone keeps the place of an erased user's logins, no more
			}
			return w.grant(ctx, l.Grant)
		})
	}
	return group.Wait()
}

func (w *comparer) grant(ctx context.Context, g grant.Grant) error {
	g, newest, err := w.compare(ctx, g)
	switch {
	case err != nil:
		return err
	case g.IsSuperseded():
		w.count(g, &w.Superseded, &w.Waiting)
	case newest.Supersedes(&g):
		w.count(g, &w.Superseded)
	case newest.Version > g.Version:
		w.count(g, &w.Behind)
		return nil
	default:
		w.count(g)
		return nil
	}
	return w.superseded(ctx, g, newest)
}

// count adds a grant to the totals, and to the counters in also.
func (w *comparer) count(g grant.Grant, also ...*int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Grants++
	if g.Status == grant.Live {
		w.Live++
	}
	for _, n := range also {
		*n++
	}
}

// compare reads the latest mark of g. A record that is behind or waits is loaded whole, since a
// listed record may lack its tokens.
func (w *comparer) compare(ctx context.Context, g grant.Grant) (grant.Grant, grant.Mark, error) {
	newest, err := w.engine.Newest(ctx, g.Key)
	if err != nil || newest.Version <= g.Version && !g.IsSuperseded() {
		return g, newest, err
	}
	whole, err := w.store.Load(ctx, g.Key)
	if errors.Is(err, grant.ErrNotFound) { // erased meanwhile
		return g, grant.Mark{}, nil
	}
	return whole, newest, err
}
