package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
)

// present spends the refresh token once, or twice if the answer was lost on the way.
func (r *renewal) present(ctx context.Context, g *grant.Grant) (step, error) {
	if err := r.unsaved.acquire(ctx); err != nil {
		return done, retry(err)
	}
	tokens, fault := r.calls.present(ctx, r.held, g)
	if fault != nil && mayReplay(fault) && ctx.Err() == nil {
		// The token may be spent, and the reply is lost. The same token is presented again at once,
		// while the provider may still honour it.
		*g = g.Doubted(r.Now())
		tokens, fault = r.calls.present(ctx, r.held, g)
	}
	r.held.release()
	if fault != nil {
		r.unsaved.cancel()
		r.fault = fault
		return judge, nil
	}
	r.unsaved.hold()
	r.tokens = tokens
	return save, nil
}

// mayReplay reports whether the provider's answer was lost on the way, rather than the provider
// being out of order. Only after a lost answer does asking again at once have a point.
func mayReplay(f *grant.Fault) bool { return f.Class == grant.Ambiguous && f.Status < 300 }

// calls makes the calls to the provider.
type calls struct{ *job }

var errClaimOver = errors.New(
	"the claim ran out before the provider answered, and could not be extended")

// present makes the call that spends the token.
func (c *calls) present(
	ctx context.Context, held *claimed, g *grant.Grant,
) (grant.Tokens, *grant.Fault) {
	if !c.m.Held() || !held.live(c.Now(), c.ClaimFor) {
		// Stalled since the claim: the claim may have run out, and another worker may have the
		// grant.
		return grant.Tokens{}, &grant.Fault{
			Class: grant.Unsent, Op: "refresh", Err: runner.ErrLeaseLost,
		}
	}
	began := time.Now()
	// Once the token has left, the call goes on. A lost lease or a shutdown would only lose the
	// answer, and the pair with the answer. The call ends with the client's timeout or with the
	// claim. After the end of the claim another worker may present the token, and two presentations
	// must never be under way.
	call, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	stop := held.watch(c.Now, c.ClaimFor, func() { end(errClaimOver) })
	sent := c.Now() // by the clock that all workers share
	tokens, err := c.provider.Client.Refresh(call, g.Pair.Refresh)
	stop()
	if tokens.SentAt.IsZero() {
		tokens.SentAt = sent
	}
	fault := asFault("refresh", err)
	c.meters.called(ctx, c.key.Provider, "refresh", fault, time.Since(began))
	c.provider.report(g, fault)
	return tokens, fault
}

// asFault makes every error of a client a *grant.Fault. An error of another type is ambiguous,
// never a verdict.
func asFault(op string, err error) *grant.Fault {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*grant.Fault](err); ok {
		return f
	}
	return &grant.Fault{Class: grant.Ambiguous, Op: op, Err: err}
}
