package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/renewd/renewd/internal/grant"
)

// save stores the fresh pair, before anything else.
func (r *renewal) save(ctx context.Context, g *grant.Grant) (step, error) {
	defer r.unsaved.release()
	ok, err := r.pairs.save(ctx, g, r.tokens)
	return saved(g, ok), err
}

// saved is the step after the save of a pair. A grant suspended meanwhile keeps the pair, and no
// profile is asked for.
func saved(g *grant.Grant, ok bool) step {
	return either(ok && g.Status == grant.Live, profile)
}

// pairs stores fresh pairs. If a method returns ok false without an error, the pair was dropped for
// a newer pair or for an erasure, and the record must be loaded again.
type pairs struct {
	*job
	record *record
	last   *kept // the last proven pair that this job has saved
}

// kept is a pair with the mark of its record.
type kept struct {
	mark   grant.Mark
	tokens grant.Tokens
}

// save stores a fresh pair. Nothing may come between the provider's answer and this call. save goes
// on after a shutdown and a lost lease until the store has the pair. Once the work has ended, save
// goes on until the pair is parked or Config.SaveLimit is over. While the store does not take the
// pair, or is slow, the pair is parked: then a killed worker loses nothing.
func (p *pairs) save(
	ctx context.Context, g *grant.Grant, tokens grant.Tokens,
) (ok bool, _ error) {
	presented := g.Fingerprint()
	work := ctx
	ctx = context.WithoutCancel(ctx)
	var waits backoff.BackOff = backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second),
		backoff.WithMaxElapsedTime(0))
	rotated := g.Rotated(p.turn(), tokens, presented)
	copied := p.fallback(ctx, &rotated)
	var ended time.Time
	for {
		ok, err := p.saveOnce(ctx, g, tokens, presented)
		if err == nil {
			copied.drop(ctx)
			return ok, nil
		}
		parked := copied.keep(ctx, err)
		if work.Err() != nil && ended.IsZero() {
			ended = time.Now()
		}
		if !ended.IsZero() && (parked || time.Since(ended) > p.SaveLimit) {
			if !parked {
				p.Logger.Error("a rotated pair is lost: neither the store nor the stream took it",
					"grant", p.key, "error", err)
				p.meters.lost.Add(ctx, 1)
			}
			copied.late.Stop()
			return false, retry(err)
		}
		<-time.After(waits.NextBackOff())
	}
}

// saveOnce tries to store the pair on top of g. g becomes the record as stored, or, on a conflict,
// the newest record.
func (p *pairs) saveOnce(
	ctx context.Context, g *grant.Grant, tokens grant.Tokens, presented string,
) (ok bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		next := g.Rotated(p.turn(), tokens, presented)
		rev, err := p.Store.Save(ctx, next.AsStored())
		if err == nil {
			*g = next
			g.Revision, p.record.seen = rev, p.Now()
			if !g.OnCandidate() {
				p.last = &kept{g.Mark(), tokens}
			}
			p.learn(g.Mark())
			return true, nil
		}
		if !errors.Is(err, grant.ErrConflict) {
			return false, err
		}
		cur, there, err := p.record.reload(ctx)
		switch {
		case err != nil:
			return false, err
		case !there:
			p.Logger.Info("dropped a fresh pair: the user was erased meanwhile", "grant", p.key)
			return false, nil
		}
		// The candidate of the pair may have been proven meanwhile. Then the pair belongs to the
		// proven side.
		side, beside := g.Beside(cur)
		switch {
		case !beside && !cur.Accepts(presented, tokens.SentAt):
			p.dropped(ctx, "the login that it is of was proven by a newer one, or rejected")
			return false, nil
		case side.SavedBy == p.nonce && side.Pair.Parent == presented &&
			side.Pair.Refresh.Equal(next.Pair.Refresh):
			*g = side
			return true, nil // the save had worked, and its reply was lost
		case side.Version >= g.Version && !side.Accepts(presented, tokens.SentAt):
			// A record with an older version is no newer login. The store was restored meanwhile,
			// and this pair is the newest there is.
			p.dropped(ctx, "a newer login or answer is stored")
			return false, nil
		}
		p.noteTold(&cur)
		*g = side.Resumed(p.turn())
	}
}

// dropped notes that a fresh pair is of no use any more. The pair is never revoked: at some
// providers a revocation would end the newer login too.
func (p *pairs) dropped(ctx context.Context, why string) {
	p.Logger.Info("dropped a fresh pair: "+why, "grant", p.key)
	p.meters.superseded.Add(ctx, 1)
}
