package stream

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Newest returns the latest mark that the streams know of the grant's record, from the user's last outcomes and from the
// pair that is parked, if any: an intact store has that state or a later one. Zero if they know nothing. It asks the
// streams' leaders, all at once.
func (e *Engine) Newest(ctx context.Context, k grant.Key) (grant.Mark, error) {
	types := append(userOutcomes(), schema.UserForgotten)
	marks := make([]grant.Mark, len(types)+1)
	group, ctx := errgroup.WithContext(ctx)
	for i, t := range types {
		group.Go(func() (err error) {
			marks[i], err = e.lastMark(ctx, Outcomes, e.config.Subjects.Of(schema.Address{Type: t, Provider: k.Provider, User: k.User}))
			return err
		})
	}
	group.Go(func() error {
		p, found, err := e.Parked(ctx, k)
		if found {
			marks[len(types)] = grant.Mark{Version: p.Version, Token: parkedToken}
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return grant.Mark{}, fmt.Errorf("newest state of %s: %w", k, err)
	}
	var newest grant.Mark
	for _, m := range marks {
		newest = newest.Newest(m)
	}
	return newest, nil
}

// parkedToken stands for the refresh token of a parked pair, which is sealed: it is never the one that the store holds.
const parkedToken = "parked"

// TimerMark returns the mark of the record that the grant's timer was set from, zero if no timer waits. A timer is set
// after each change of a record, so that a store which has its mark, or a later one, has lost nothing: one read where
// Newest needs many.
func (e *Engine) TimerMark(ctx context.Context, k grant.Key) (grant.Mark, error) {
	m, err := e.lastMark(ctx, Renewals, e.timer(k))
	if err != nil {
		return grant.Mark{}, fmt.Errorf("timer of %s: %w", k, err)
	}
	return m, nil
}

func (e *Engine) lastMark(ctx context.Context, base, subject string) (grant.Mark, error) {
	m, err := e.last(ctx, base, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return grant.Mark{}, nil
	}
	if err != nil {
		return grant.Mark{}, err
	}
	// One that cannot be read says nothing; it must not keep the user from being renewed.
	mark, _ := grant.ParseMark(schema.Header(m.Header).Get(headerRecord))
	return mark, nil
}
