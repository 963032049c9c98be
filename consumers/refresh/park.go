package refresh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
)

// spare is the second place of a fresh pair: the stream, where another process finds it if this one
// dies, for as long as the store has not taken it.
type spare struct {
	task  *task
	grant grant.Grant // with the fresh pair
	late  *time.Timer

	mu       sync.Mutex
	sequence uint64 // of the parked pair; 0: it is not parked
	over     bool
}

var errSlow = errors.New("the store takes its time")

// spare parks the pair of g if it is not dropped within Config.ParkAfter.
func (t *task) spare(ctx context.Context, g grant.Grant) *spare {
	s := &spare{task: t, grant: g}
	s.late = time.AfterFunc(t.ParkAfter, func() { s.keep(ctx, errSlow) })
	return s
}

// keep parks the pair, unless it is parked or dropped, and tells whether it is.
func (s *spare) keep(ctx context.Context, cause error) (parked bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sequence != 0 || s.over {
		return s.sequence != 0
	}
	t := s.task
	sequence, err := s.park(ctx)
	if err != nil {
		t.Logger.Error("a rotated pair can be neither saved nor parked; both are tried on", "grant", t.key, "save_error", cause, "park_error", err)
		return false
	}
	s.sequence = sequence
	t.Logger.Warn("the store did not take a rotated pair; it is parked in the stream and saved when the store is back", "grant", t.key, "error", cause)
	t.meters.parked.Add(ctx, 1)
	return true
}

// park seals the pair into the stream.
func (s *spare) park(ctx context.Context) (sequence uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pair := s.grant.Pair
	sealed, err := grant.SealPair(s.task.Cipher, grant.PurposePark, s.task.key, s.grant.Version, pair)
	if err != nil {
		return 0, err
	}
	return s.task.Stream.Park(ctx, s.task.key, grant.Parcel{Version: s.grant.Version, Parent: pair.Parent, Candidate: s.grant.OnCandidate(), Sealed: sealed})
}

// drop removes the parked pair: the store has it, or a newer one. Another worker's is left alone.
func (s *spare) drop(ctx context.Context) {
	s.late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	if s.sequence != 0 {
		s.task.discard(ctx, s.sequence)
	}
}

// unpark applies a parked pair when the claim before ours ended unknown. done tells that it did,
// and g is then saved.
func (t *task) unpark(ctx context.Context, c *claimed, g grant.Grant) (_ grant.Grant, done bool, _ error) {
	presented := g.Fingerprint()
	if g.Doubt == nil || g.Doubt.Fingerprint != presented {
		return g, false, nil
	}
	parcel, ok, err := t.Stream.Parked(ctx, t.key)
	if err != nil {
		return g, false, consumers.Retry(err, time.Second)
	}
	if !ok {
		return g, false, nil
	}
	// The record may have moved on while the pair waited. What ties the two is the pair's parent,
	// the fingerprint of the token that it was got with.
	pair, err := grant.OpenPair(t.Cipher, grant.PurposePark, t.key, parcel.Version, parcel.Sealed)
	if err != nil {
		// The token may be spent, and what it was spent for is in there. Another worker may have
		// the key.
		c.release()
		return g, false, errors.Join(t.unopened(err), t.giveBack(ctx, g))
	}
	if pair.Parent != presented {
		if !g.AsStored().Holds(pair.Parent) {
			t.discard(ctx, parcel.Sequence) // about a token that is no longer a stored one
		}
		return g, false, nil
	}
	c.release()
	g, err = t.applyParked(ctx, g, parcel, pair)
	return g, err == nil, err
}

// unopened is what becomes of work on a grant whose parked pair cannot be opened: it waits, and
// presents nothing.
func (t *task) unopened(err error) error {
	t.Logger.Error("a parked pair cannot be opened: the refresh token that it replaces is not presented", "grant", t.key, "error", err,
		"hint", "is a key missing from this worker's keyring? The user's next login ends this as well")
	return consumers.Retry(fmt.Errorf("%w: parked pair: %w", grant.ErrUnreadable, err), time.Second)
}

// applyParked stores a parked pair.
func (t *task) applyParked(ctx context.Context, g grant.Grant, parcel grant.Parcel, pair grant.Pair) (grant.Grant, error) {
	g, err := t.savePair(ctx, g, grant.Tokens{
		Access: pair.Access, Refresh: pair.Refresh, ID: pair.ID, Scope: pair.Scope, ExpiresIn: pair.Lifetime, SentAt: pair.SentAt,
	})
	if err != nil {
		return g, err
	}
	t.Logger.Info("applied a parked pair", "grant", t.key)
	t.discard(ctx, parcel.Sequence)
	return g, nil
}

// parkedFirst looks, where a grant has several sides, whether a pair of one of them is parked: that
// side has to come first, since a pair of another would take the place.
func (t *task) parkedFirst(ctx context.Context, g grant.Grant) error {
	if g.Candidate == nil || t.first != "" {
		return nil
	}
	parcel, found, err := t.Stream.Parked(ctx, t.key)
	if err != nil {
		return consumers.Retry(err, time.Second)
	}
	if found && g.Holds(parcel.Parent) {
		t.first = parcel.Parent
	}
	return nil
}

// discard removes the grant's parked pair. If that fails it does no harm, since its parent is
// spent: the reconciler will.
func (t *task) discard(ctx context.Context, sequence uint64) {
	if err := t.Stream.Unpark(ctx, t.key, sequence); err != nil {
		t.Logger.Warn("a parked pair that was saved is still in the stream; it is harmless", "grant", t.key, "error", err)
	}
}
