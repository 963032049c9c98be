package admin

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/schema"
)

// Accept makes grants with a superseded token live again and wakes them: all such grants, or the
// given provider's or user's. It counts these grants.
func Accept(
	ctx context.Context, p *daemon.Resources, provider, user string,
) (accepted int, err error) {
	var mu sync.Mutex
	visit := func(ctx context.Context, g grant.Grant, newest grant.Mark) error {
		if user != "" && g.User != user || provider != "" && g.Provider != provider {
			return nil
		}
		if err := accept(ctx, p, g, newest); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		accepted++
		return nil
	}
	_, err = reconcile.Compare(ctx, p.Store, p.Engine, visit)
	return accepted, err
}

// accept makes g live again. If another writer changed the record meanwhile, the record stays as it
// is.
func accept(ctx context.Context, p *daemon.Resources, g grant.Grant, newest grant.Mark) error {
	now := time.Now().UTC()
	cause := schema.Cause{ID: nuid.Next(), Type: "store.accept", Source: "/renewd/cli", Time: now}
	g = g.Accepted(grant.Turn{
		Work:   grant.Work{Cause: cause, Mark: newest},
		Nonce:  cause.ID,
		Now:    now,
		Policy: &grant.Policy{},
	})
	_, err := p.Store.Save(ctx, g)
	if errors.Is(err, grant.ErrConflict) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.Engine.Wake(ctx, g.Key, grant.Work{Cause: cause, Mark: g.Mark()})
}
