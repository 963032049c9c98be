package stream

import (
	"context"
	"fmt"

	"github.com/renewd/renewd/internal/grant"
)

// Published returns the latest mark among the user's outcomes: all outcomes decided at this state
// of the record, or before, are published. Zero without a mark. Published asks the stream's leader.
func (e *Engine) Published(ctx context.Context, k grant.Key) (newest grant.Mark, err error) {
	all, err := e.lastOutcomes(ctx, k, userOutcomes())
	if err != nil {
		return grant.Mark{}, fmt.Errorf("published state of %s: %w", k, err)
	}
	for _, o := range all {
		newest = newest.Newest(o.mark)
	}
	return newest, nil
}

// PublishedUpTo is Published with the marks of the grant's timers. A timer is set once the outcome
// of its record's state is published. So a timer also proves outcomes that have outlived their
// time.
func (e *Engine) PublishedUpTo(ctx context.Context, k grant.Key) (grant.Mark, error) {
	newest, err := e.Published(ctx, k)
	if err != nil {
		return newest, err
	}
	timer, due, err := e.Waits(ctx, k)
	if err != nil {
		return newest, fmt.Errorf("state of %s with its timers: %w", k, err)
	}
	for _, s := range append(due, timer) {
		newest = newest.Newest(s.Work.Mark)
	}
	return newest, nil
}
