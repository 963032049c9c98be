package refresh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// unpark stores a parked pair instead of presenting its parent, if the claim before this one ended
// unknown.
func (r *renewal) unpark(ctx context.Context, g *grant.Grant) (step, error) {
	presented := g.Fingerprint()
	if g.Doubt == nil || g.Doubt.Fingerprint != presented {
		return present, nil
	}
	parcel, found, err := r.pairs.parked(ctx)
	if err != nil {
		return done, err
	}
	if !found {
		return present, nil
	}
	// The record may have moved on while the pair waited. The pair's parent ties the two: the
	// fingerprint of the token that the provider took for the pair.
	pair, err := r.pairs.open(parcel)
	if err != nil {
		// The token may be spent, and its successor is in the parcel. Another worker may have the
		// key.
		r.held.release()
		return done, errors.Join(err, r.record.giveBack(ctx, g))
	}
	if pair.Parent != presented {
		if stored := g.AsStored(); !stored.Holds(pair.Parent) {
			r.pairs.discard(ctx, parcel.Sequence) // its parent is no longer stored
		}
		return present, nil
	}
	r.held.release()
	ok, err := r.pairs.apply(ctx, g, parcel, pair)
	return saved(g, ok), err
}

// findParked looks for a parked pair of one of the sides, if a grant has several. The side of the
// pair has to come first, since a pair of another side would take the place. If a user.suspend
// holds the proven side, its pair waits for a user.resume, and a newer login does not wait too.
func (p *pairs) findParked(ctx context.Context, g *grant.Grant) error {
	if g.Candidate == nil || p.parkedParent != "" {
		return nil
	}
	parcel, found, err := p.parked(ctx)
	if err != nil {
		return err
	}
	held := !g.SuspendedAt().IsZero() && parcel.Parent == g.Mark().Token
	if found && !held && g.Holds(parcel.Parent) {
		p.parkedParent = parcel.Parent
	}
	return nil
}

// parked is the pair of this grant waiting in the stream.
func (p *pairs) parked(ctx context.Context) (_ grant.Parcel, found bool, _ error) {
	parcel, found, err := p.Parking.Parked(ctx, p.key)
	if err != nil {
		return parcel, false, retry(err)
	}
	return parcel, found, nil
}

// open is the pair in a parcel. While a parked pair cannot be opened, the work on its grant waits
// and presents nothing.
func (p *pairs) open(parcel grant.Parcel) (grant.Pair, error) {
	pair, err := grant.OpenPair(p.Cipher, grant.PurposePark, p.key, parcel.Version, parcel.Sealed)
	if err == nil {
		return pair, nil
	}
	p.Logger.Error(
		"a parked pair cannot be opened: the refresh token that it replaces is not presented",
		"grant", p.key, "error", err,
		"hint", "is a key missing from this worker's keyring? "+
			"The user's next login ends this as well")
	return grant.Pair{}, retry(fmt.Errorf("%w: parked pair: %w", grant.ErrUnreadable, err))
}

// apply stores a parked pair.
func (p *pairs) apply(
	ctx context.Context, g *grant.Grant, parcel grant.Parcel, pair grant.Pair,
) (ok bool, _ error) {
	ok, err := p.save(ctx, g, grant.Tokens{
		Access: pair.Access, Refresh: pair.Refresh, ID: pair.ID, Scope: pair.Scope,
		ExpiresIn: pair.Lifetime, SentAt: pair.SentAt,
	})
	if !ok || err != nil {
		return false, err
	}
	p.Logger.Info("applied a parked pair", "grant", p.key)
	p.discard(ctx, parcel.Sequence)
	return true, nil
}

// discard removes the grant's parked pair. A failure does no harm, since the pair's parent is
// spent: the reconciler will remove the pair.
func (p *pairs) discard(ctx context.Context, sequence uint64) {
	if err := p.Parking.Unpark(ctx, p.key, sequence); err != nil {
		p.Logger.Warn("a parked pair that was saved is still in the stream; it is harmless",
			"grant", p.key, "error", err)
	}
}

// fallback is the second place of a fresh pair: the stream. Until the store has taken the pair,
// another process finds the pair there if this process dies.
type fallback struct {
	pairs  *pairs
	pair   grant.Pair
	parcel grant.Parcel // for the pair, which is sealed only for parking
	late   *time.Timer

	mu       sync.Mutex
	sequence uint64 // of the parked pair; 0: not parked
	over     bool
}

var errSlow = errors.New("the store takes its time")

// fallback parks the pair of g unless the pair is dropped within Config.ParkAfter.
func (p *pairs) fallback(ctx context.Context, g *grant.Grant) *fallback {
	f := &fallback{pairs: p, pair: g.Pair, parcel: grant.Parcel{
		Version: g.Version, Parent: g.Pair.Parent, Candidate: g.OnCandidate(),
	}}
	f.late = time.AfterFunc(p.ParkAfter, func() { f.keep(ctx, errSlow) })
	return f
}

// keep parks the pair, unless parked or dropped before, and tells whether the pair is parked.
func (f *fallback) keep(ctx context.Context, cause error) (parked bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sequence != 0 || f.over {
		return f.sequence != 0
	}
	p := f.pairs
	sequence, err := f.park(ctx)
	if err != nil {
		p.Logger.Error("a rotated pair can be neither saved nor parked; both are tried on",
			"grant", p.key, "save_error", cause, "park_error", err)
		return false
	}
	f.sequence = sequence
	p.Logger.Warn("the store did not take a rotated pair; "+
		"it is parked in the stream and saved when the store is back",
		"grant", p.key, "error", cause)
	p.meters.parked.Add(ctx, 1)
	return true
}

// park seals the pair into the stream.
func (f *fallback) park(ctx context.Context) (sequence uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	p, parcel := f.pairs, f.parcel
	parcel.Sealed, err = grant.SealPair(
		p.Cipher, grant.PurposePark, p.key, parcel.Version, f.pair)
	if err != nil {
		return 0, err
	}
	return p.Parking.Park(ctx, p.key, parcel)
}

// drop removes the parked pair: the store has this pair or a newer pair. A pair parked by another
// worker is left alone.
func (f *fallback) drop(ctx context.Context) {
	f.late.Stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	if f.sequence != 0 {
		f.pairs.discard(ctx, f.sequence)
	}
}
