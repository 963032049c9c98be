package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// forgetClaim is how long an erasure waits for a worker that is handling the user, and how long its
// own claim then keeps other workers away.
const (
	forgetClaim = time.Minute
	forgetRetry = 250 * time.Millisecond
	// forgetLook is longer than any worker goes on with a user, publishing included, without
	// looking whether the user still exists.
	forgetLook = 12 * time.Second
)

// Erasure is which user is erased, and how.
type Erasure struct {
	Key      grant.Key
	By       string // who asked for the erasure, for the outcome
	Source   string // of the cause; empty: the command line's
	NoRevoke bool   // leave the user's session at the provider as it is
}

// ErrUnknown: neither the store nor the streams know the user.
var ErrUnknown = errors.New("nothing is known")

// Erase erases a user everywhere, beside the workers: it revokes the session, leaves a tombstone,
// settles, purges, and publishes user.forgotten. It takes more than ten seconds. After an error the
// user may be erased in part: call Erase again. An error that is ErrUnknown or
// stream.ErrMayNotErase comes before anything was erased.
func Erase(ctx context.Context, p *daemon.Resources, e Erasure) error {
	k := e.Key
	if known, err := knowsUser(ctx, p, k); !known || err != nil {
		return cmp.Or(err, fmt.Errorf("%w of %s, so that nothing was erased: "+
			"is the id as the provider writes it?", ErrUnknown, k))
	}
	if err := p.Engine.MayErase(ctx); err != nil {
		return fmt.Errorf("nothing is erased: %w", err)
	}
	began, newest, err := beginErasure(ctx, p)
	if err != nil {
		return fmt.Errorf("nothing is erased: %w", err)
	}
	return eraseUpTo(ctx, p, e, began, newest)
}

// beginErasure returns when an erasure begins, and the place of the newest login then. The time
// comes first: a login after the place stays, and must not seem to be from before the erasure.
func beginErasure(
	ctx context.Context, p *daemon.Resources,
) (began time.Time, newest grant.Position, err error) {
	began = time.Now().UTC()
	newest, err = p.Engine.NewestLogin(ctx)
	return began, newest, err
}

// eraseUpTo is Erase, begun at this time, for logins up to newest. Later logins stay.
func eraseUpTo(
	ctx context.Context, p *daemon.Resources, e Erasure, began time.Time, newest grant.Position,
) error {
	k := e.Key
	source := cmp.Or(e.Source, "/renewd/cli")
	cause := schema.Cause{ID: nuid.Next(), Type: "user.forget", Source: source, Time: began}
	revoke := func(ctx context.Context, k grant.Key, tokens []secret.Value) error {
		return revokeAtProvider(ctx, p, k, tokens)
	}
	if e.NoRevoke {
		revoke = func(context.Context, grant.Key, []secret.Value) error { return nil }
	}
	version, err := forgetUpTo(ctx, p, k, cause, newest, revoke)
	if err != nil {
		return fmt.Errorf("%w; some of it may be erased: run this again", err)
	}
	data, err := json.Marshal(schema.Forgotten{Cause: cause, BeganAt: began, By: e.By})
	if err != nil {
		return err
	}
	// The mark keeps a record from being renewed if an older backup brings the record back.
	return p.Engine.PublishMarked(ctx, schema.Event{
		ID: grant.OutcomeID(k, cause), Source: daemon.Source, Type: schema.UserForgotten,
		Provider: k.Provider, User: k.User, Time: began, Data: data,
	}, grant.Mark{Version: version + 1})
}

// knowsUser reports whether the store or the streams hold anything about a user.
func knowsUser(ctx context.Context, p *daemon.Resources, k grant.Key) (bool, error) {
	if _, err := p.Store.Load(ctx, k); !errors.Is(err, grant.ErrNotFound) {
		return true, nil // the erasure deals with any other error
	}
	return p.Engine.Knows(ctx, k)
}

// Forget leaves a tombstone in the record's place, so that no earlier login brings the user back.
// Only then does Forget wait for the work being handled, and erase all that is left of the user. A
// later login stays. Forget returns the version of the tombstone.
func Forget(
	ctx context.Context, p *daemon.Resources, k grant.Key, cause schema.Cause, revoke revoke,
) (version int64, err error) {
	newest, err := p.Engine.NewestLogin(ctx)
	if err != nil {
		return 0, err
	}
	return forgetUpTo(ctx, p, k, cause, newest, revoke)
}

// forgetUpTo is Forget for logins up to newest.
func forgetUpTo(
	ctx context.Context, p *daemon.Resources, k grant.Key, cause schema.Cause,
	newest grant.Position, revoke revoke,
) (version int64, err error) {
	published, err := p.Engine.Newest(ctx, k)
	if err != nil {
		return 0, err
	}
	g, err := entomb(ctx, p, k, newest,
		grant.Turn{
			Work:   grant.Work{Cause: cause, Mark: published},
			Nonce:  cause.ID,
			Now:    p.Engine.Now(),
			Policy: &grant.Policy{},
		},
		revoke)
	if err != nil {
		return 0, err
	}
	if err := rearm(ctx, p, k); err != nil { // a later login does not wait for the rest
		return 0, err
	}
	// First wait, then purge: after a purge the streams no longer show the work being handled.
	settling, cancel := context.WithTimeoutCause(ctx, forgetClaim,
		errors.New("a worker is busy with it for long"))
	defer cancel()
	look := time.After(forgetLook)
	if err := p.Engine.AwaitInFlight(settling, k.Provider); err != nil {
		return 0, err
	}
	<-look
	if err := p.Engine.Erase(ctx, k, newest); err != nil {
		return 0, err
	}
	return g.Version, rearm(ctx, p, k)
}

// rearm makes a login that came after an erasure due at once. The work that waited for the login,
// and the outcomes about it, were erased with the rest.
func rearm(ctx context.Context, p *daemon.Resources, k grant.Key) error {
	g, err := p.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound), errors.Is(err, grant.ErrUnreadable):
		return nil
	case err != nil:
		return err
	case g.Candidate != nil:
		return p.Engine.Request(ctx, k, grant.Work{Cause: g.Candidate.Cause})
	case (g.Status == grant.Live || g.Status == grant.Dormant) && !g.NextDueAt.IsZero():
		now := p.Engine.Now()
		return p.Engine.Arm(ctx, k, now, g.NextTimer(now))
	}
	return nil
}

// entomb puts a tombstone in the record's place, once no worker handles the record. It revokes the
// tokens of the record first.
func entomb(
	ctx context.Context, p *daemon.Resources, k grant.Key, upTo grant.Position, t grant.Turn,
	revoke revoke,
) (grant.Grant, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, forgetClaim,
		errors.New("it stays in use; try again"))
	defer cancel()
	for {
		g, _, err := p.Store.Claim(ctx, k, grant.ClaimRequest{
			Nonce: t.Nonce,
			For:   forgetClaim,
			Cause: t.Work.Cause,
		})
		if errors.Is(err, grant.ErrNotFound) || errors.Is(err, grant.ErrUnreadable) {
			err = nil // nothing to keep other workers from
		} else if err == nil {
			// Again for tokens that came meanwhile: a dead token is revoked too.
			if err := revoke(ctx, k, g.Revocable(upTo)); err != nil {
				return g, err
			}
		}
		if err == nil {
			tomb := g.Erased(k, upTo, t)
			tomb.Claim = nil
			if tomb.Revision, err = p.Store.Save(ctx, tomb); err == nil {
				return tomb, nil
			}
		}
		if !errors.Is(err, grant.ErrClaimed) && !errors.Is(err, grant.ErrConflict) {
			return g, fmt.Errorf("erase %s: %w", k, err)
		}
		select {
		case <-ctx.Done():
			return g, fmt.Errorf("erase %s: %w: %w", k, context.Cause(ctx), err)
		case <-time.After(forgetRetry):
		}
	}
}

// revoke ends the user's sessions that these refresh tokens belong to.
type revoke func(ctx context.Context, k grant.Key, tokens []secret.Value) error

// revokeAtProvider is a revoke that asks the provider.
func revokeAtProvider(
	ctx context.Context, p *daemon.Resources, k grant.Key, tokens []secret.Value,
) error {
	provider, ok := p.Conf.Provider(k.Provider)
	if !ok {
		return fmt.Errorf("provider %s is not in the settings, so that its session of %s cannot "+
			"be revoked: add it, or say --no-revoke", k.Provider, k.User)
	}
	client, err := p.Client(provider)
	if err != nil {
		return err
	}
	for _, token := range tokens {
		if err := client.Revoke(ctx, token); err != nil && !errors.Is(err, grant.ErrNoRevocation) {
			return fmt.Errorf("nothing is erased yet: the provider did not revoke the user's "+
				"session: %w; try again, or say --no-revoke to leave it alive there", err)
		}
	}
	return nil
}
