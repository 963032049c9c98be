package stream

import (
	"context"
	"fmt"

	"github.com/renewd/renewd/internal/grant"
)

// Published returns the latest mark among the user's outcomes: all that was decided at that state
// of the record, or before it, is published. Zero if there is none. It asks the stream's leader.
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
