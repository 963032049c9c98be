package stream

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Newest returns the latest mark that the streams know of the grant's record, from the user's last
// outcomes and from the pair that is parked, if any: an intact store has that state or a later one.
// Zero if they know nothing. It asks the streams' leaders, all at once.
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
		if found && !p.Candidate { // which says nothing of the record's own state
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

// parkedToken stands for the refresh token of a parked pair, which is sealed: it is never the one
// that the store holds.
const parkedToken = "parked"
