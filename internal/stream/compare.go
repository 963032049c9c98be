package stream

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Comparison is how a store stands against what was published from it.
type Comparison struct {
	Grants int `json:"grants"`
	Live   int `json:"live"`
	// Superseded grants hold a refresh token that is known to have been replaced: it is not
	// presented.
	Superseded int `json:"superseded"`
	// Waiting are those of them that a worker has met already: they wait for a login or an
	// operator.
	Waiting int `json:"waiting"`
	// Behind are older than what was published of them, with the same refresh token: they just go
	// on.
	Behind     int `json:"behind"`
	Unreadable int `json:"unreadable"` // no key opens them
	// Outcomes is how many outcomes there are to compare with. With none, a restored store looks
	// like any other.
	Outcomes uint64 `json:"outcomes"`
}

// comparisons is how many grants are compared at a time.
const comparisons = 32

// Compare walks the store and holds every grant against the streams. It writes nothing. superseded,
// if not nil, is told of each grant that is, with the latest mark known of it; it is called
// concurrently, and its error ends the walk.
func Compare(ctx context.Context, s grant.Store, e *Engine, superseded func(context.Context, grant.Grant, grant.Mark) error) (Comparison, error) {
	if superseded == nil {
		superseded = func(context.Context, grant.Grant, grant.Mark) error { return nil }
	}
	w := comparer{store: s, engine: e, superseded: superseded}
	var err error
	if w.Outcomes, err = e.outcomes(ctx); err != nil {
		return w.Comparison, err
	}
	for cursor := ""; ; {
		page, next, err := s.List(ctx, cursor, 500)
		if err != nil {
			return w.Comparison, fmt.Errorf("list grants: %w", err)
		}
		if err := w.page(ctx, page); err != nil || next == "" {
			return w.Comparison, err
		}
		cursor = next
	}
}

// comparer is one Compare.
type comparer struct {
	store      grant.Store
	engine     *Engine
	superseded func(context.Context, grant.Grant, grant.Mark) error

	mu sync.Mutex
	Comparison
}

func (w *comparer) page(ctx context.Context, page []grant.Listed) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(comparisons)
	for _, l := range page {
		group.Go(func() error {
			switch {
			case l.Err != nil:
				w.count(l.Grant, &w.Unreadable)
				return nil
			case l.Status == grant.Forgotten:
				return nil // it keeps the place of an erased user's logins, no more
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
	case newest.Supersedes(g):
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

// count adds a grant to the totals, and to these.
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

// compare asks for what is known of g. A record that is behind or waits is loaded whole: a listed
// one may lack its tokens.
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

// outcomes counts what OUTCOMES holds, but for the acts of operators, which tell nothing of a
// grant.
func (e *Engine) outcomes(ctx context.Context) (uint64, error) {
	name := e.config.Subjects.Name(Outcomes)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	acted := e.config.Subjects.Filter(schema.OperatorActed, "", "")
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(acted))
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	return info.State.Msgs - min(info.State.Msgs, info.State.Subjects[acted]), nil
}
