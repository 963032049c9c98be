package stream

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Newest returns the latest mark of the grant's record known to the streams, from the user's last
// outcomes and from the parked pair, if any. An intact store has this state or a later state. Zero
// if the streams know nothing. Newest asks the streams' leaders, all at once.
func (e *Engine) Newest(ctx context.Context, k grant.Key) (grant.Mark, error) {
	var all []storedOutcome
	var parcel grant.Mark
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		all, err = e.lastOutcomes(ctx, k, append(userOutcomes(), schema.UserForgotten))
		return err
	})
	group.Go(func() error {
		p, found, err := e.Parked(ctx, k)
		if found && !p.Candidate { // a candidate tells nothing of the record's own state
			parcel = grant.Mark{Version: p.Version, Token: parkedToken}
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return grant.Mark{}, fmt.Errorf("newest state of %s: %w", k, err)
	}
	var newest grant.Mark
	for _, o := range all {
		newest = newest.Newest(o.mark)
	}
	return newest.Newest(parcel), nil
}

// parkedToken stands for the refresh token of a parked pair, which is sealed. The store never holds
// this token.
const parkedToken = "parked"
