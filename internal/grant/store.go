package grant

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"time"

	"github.com/renewd/renewd/schema"
)

// Errors of a Store. Any other error means "the store could not be asked": the caller does not know
// whether a write happened, and finds out by loading.
var (
	ErrNotFound = errors.New("no such grant")
	ErrClaimed  = errors.New("grant is claimed by another worker")
	ErrConflict = errors.New("grant was changed meanwhile")
	// ErrUnreadable: the record is there, but its tokens, or all of it, cannot be read. Either no
	// key of the keyring opens the record, or the record is damaged. The readable part comes back
	// beside the error, Key and Revision always. Trying again is useless until the record or the
	// keyring changes.
	ErrUnreadable = errors.New("record cannot be read")
	// ErrRefused: the store works, and refuses this record or key as it is, for malformed text or
	// too much of it. Nothing was written, and trying again with the same is useless.
	ErrRefused = errors.New("the store refuses this record as it is")
)

// ClaimRequest asks for the claim on a grant.
type ClaimRequest struct {
	Nonce string        // unique for each renewal
	For   time.Duration // how long the claim lasts, by the store's clock
	Cause schema.Cause
	// Extend only prolongs the claim with this nonce. If the nonce holds no claim any more, the
	// answer is ErrClaimed: an extension never takes a claim.
	Extend bool
	// Fingerprint is of the refresh token about to be presented. Empty: the refresh token stored as
	// Pair.
	Fingerprint string
	// Presented marks the claim as used: the caller is about to present the token. The mark stays
	// once set.
	Presented bool
	// Loaded is the record from Load. The claim need not read the record again unless it changed
	// since. nil: the caller has not loaded the record.
	Loaded *Grant
}

// On is the claim of r on g at the time now of the store's clock.
func (r ClaimRequest) On(g *Grant, now time.Time) *Claim {
	c := &Claim{
		Nonce:       r.Nonce,
		Until:       now.Add(r.For).UTC(),
		For:         r.For,
		Fingerprint: r.Fingerprint,
		Cause:       r.Cause,
		Presented:   r.Presented || g.Claim != nil && g.Claim.Nonce == r.Nonce && g.Claim.Presented,
	}
	if c.Fingerprint == "" {
		c.Fingerprint = g.Fingerprint()
	}
	return c
}

// Store keeps grants. All methods are safe for concurrent use, also from several processes, and
// each method is linearizable for one grant: the effect of a call that returned nil is seen by each
// call that starts later, in any process. Errors wrap the sentinels above with the grant's key. No
// method retries forever; each ends when ctx does.
type Store interface {
	// Load returns the record, or ErrNotFound, or the readable part and ErrUnreadable.
	Load(ctx context.Context, k Key) (Grant, error)

	// Claim takes or extends the claim and returns the record with the claim, in one atomic step.
	// Errors: ErrClaimed if another nonce holds a claim that has not run out by the store's clock,
	// ErrNotFound, and ErrUnreadable, which leaves no claim behind. A store without its own clock
	// lets a claim run out later than at Until, never sooner, and says ErrClaimed until then. The
	// claim's Fingerprint is the request's, or else the fingerprint of the refresh token stored at
	// the moment. prior is the claim before, run out or the caller's own; nil without a claim.
	Claim(ctx context.Context, k Key, r ClaimRequest) (g Grant, prior *Claim, err error)

	// Save replaces the record, including its claim, if its revision is still g.Revision; otherwise
	// ErrConflict (also when the record is gone: a save never brings an erased user back). Revision
	// zero inserts, as only a login does, and is ErrConflict if the grant exists. Save returns the
	// new revision.
	Save(ctx context.Context, g Grant) (revision uint64, err error)

	// Delete removes the record if its revision is still revision: ErrConflict, ErrNotFound.
	Delete(ctx context.Context, k Key, revision uint64) error

	// List returns up to limit grants, from the start for an empty cursor, and the cursor for the
	// next call, empty at the end. A grant that exists during the whole walk is returned at least
	// once; the order is the store's own. Grants that cannot be opened (a lost key) are returned
	// with Err set in their place.
	List(ctx context.Context, cursor string, limit int) (page []ListEntry, next string, err error)

	// ListDue is List with only the due time and status of each grant: it reads and opens no
	// tokens, and is many times as cheap. Cursors of the two are not exchangeable.
	ListDue(ctx context.Context, cursor string, limit int) (page []Due, next string, err error)

	// ListSealed is ListDue with the first bytes of each grant's sealed tokens, which name the key
	// of the seal. ListSealed opens no tokens. Cursors are ListDue's.
	ListSealed(
		ctx context.Context, cursor string, limit int,
	) (page []Sealed, next string, err error)

	// Reseal seals the record's tokens again, unchanged, if its revision is still the given
	// revision, and binds the record to the tokens if it was not bound. Nothing else of the record
	// changes but the revision, and anything a later version of renewd may have put there is kept.
	// Errors: ErrConflict, ErrNotFound, ErrUnreadable.
	Reseal(ctx context.Context, k Key, revision uint64) error
}

// SealedHead is how many bytes of the sealed tokens a ListSealed returns, at most.
const SealedHead = 16

// Sealed describes the seal of a grant's tokens.
type Sealed struct {
	Due
	Revision uint64
	Head     []byte // of the sealed tokens, SealedHead bytes; empty: the record is damaged
	// Bound: the record says that its tokens are sealed with a Digest of the rest. Only opening the
	// record proves this.
	Bound bool
}

// HeadOf is the Head of sealed tokens, as a copy.
func HeadOf(sealed []byte) []byte {
	return bytes.Clone(sealed[:min(len(sealed), SealedHead)])
}

// Due says when a grant is to be renewed next.
type Due struct {
	Key
	Version      int64
	Status       Status    // empty: the record is damaged
	At           time.Time // zero: not before a command or an operator
	ClaimedUntil time.Time // zero: not claimed
}

// Due is when g is to be looked at next: its proven side or its candidate, whichever comes first.
func (g *Grant) Due() Due {
	d := Due{Key: g.Key, Version: g.Version, Status: g.Status, At: g.NextDueAt}
	c := g.Candidate
	if c != nil && !c.NextDueAt.IsZero() && (d.At.IsZero() || c.NextDueAt.Before(d.At)) {
		d.At = c.NextDueAt
	}
	if g.Claim != nil {
		d.ClaimedUntil = g.Claim.Until
	}
	return d
}

// WaitsSince reports whether g, as stored, waits at now for a trouble that may be over: g was put
// off when it was due, or failed at a time before since. A refusal of the user is not such a wait,
// unless it came in unknown words.
func (g *Grant) WaitsSince(since, now time.Time) bool {
	proven := side{
		Status:    g.Status,
		Verdict:   g.Verdict,
		Attempts:  g.Attempts,
		Outages:   g.Outages,
		LastError: g.LastError,
		FailedAt:  g.FailedAt,
		NextDueAt: g.NextDueAt,
	}
	waits := proven.waitsSince(since, now)
	for _, c := range g.Candidate.all() {
		waits = waits || c.waitsSince(since, now)
	}
	return waits && (g.Claim == nil || !g.Claim.Until.After(now))
}

func (s side) waitsSince(since, now time.Time) bool {
	switch {
	case s.Status != Live || s.NextDueAt.IsZero():
		return false
	case !s.NextDueAt.After(now):
		return true
	case s.Verdict != nil && !s.Verdict.Unsure, s.LastError == schema.ReasonThrottled:
		return false // the time is the verdict's, or the provider's
	}
	return s.Attempts+s.Outages > 0 && s.FailedAt.Before(since)
}

// ListEntry is one grant of a List. Tokens may be left out: Pair then has only ExpiresAt.
type ListEntry struct {
	Grant
	Err   error
	Bound bool // see Sealed
}

// pageSize is how many records a walk reads at a time.
const pageSize = 500

// Pages walks over all records of a store, page by page, until an error, which comes without a
// page. A record that is written meanwhile may come twice, and none is left out.
func Pages(ctx context.Context, s Store) iter.Seq2[[]ListEntry, error] {
	return func(yield func([]ListEntry, error) bool) {
		for cursor := ""; ; {
			page, next, err := s.List(ctx, cursor, pageSize)
			if !yield(page, err) || err != nil || next == "" {
				return
			}
			cursor = next
		}
	}
}
