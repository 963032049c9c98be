package grant

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
)

// ErrAltered is wrapped, beside ErrUnreadable, by the error of a record that another hand than
// renewd's has changed: the record no longer matches the Digest sealed with its tokens.
var ErrAltered = errors.New("the record was changed by another hand than renewd's")

// ErrUnbound is wrapped, beside ErrUnreadable, by the error of a record that is not bound, where a
// store refuses unbound records: nothing protects such a record from another hand.
var ErrUnbound = errors.New(
	"the record is not bound to its sealed tokens, as require_bound_records wants it",
)

// Digest is a hash of everything a store keeps of a grant beside the sealed tokens, byte by byte as
// the store keeps it. The Digest is sealed with the tokens, which binds the record: a writer to the
// store without a key can neither change a field of the record nor mix two records. The Digest is
// empty in records of versions that sealed no Digest.
//
// The Digest lies inside the sealed text, not in the associated data. So a version of renewd
// without the Digest can still read the record.
type Digest []byte

// joined are buffers for DigestOf: a record's parts have a kilobyte or more, and are digested at
// each load and each save.
var joined = sync.Pool{New: func() any { return new([]byte) }}

// DigestOf is the Digest of parts, each told apart from the next.
func DigestOf[T ~string | ~[]byte](parts ...T) Digest {
	buffer := joined.Get().(*[]byte)
	defer joined.Put(buffer)
	all := (*buffer)[:0]
	for _, p := range parts {
		all = binary.BigEndian.AppendUint64(all, uint64(len(p)))
		all = append(all, p...)
	}
	*buffer = all
	sum := sha256.Sum256(all)
	return sum[:]
}

// Beside describes a record's fields beside its sealed tokens, as a store found them.
type Beside struct {
	Digest Digest
	// Marked: the record says of itself that it is bound. Walks need this, since walks open no
	// tokens.
	Marked bool
	// Required: an unbound record is not read.
	Required bool
}

// holds compares b with the sealed Digest. The error wraps ErrUnreadable.
func (b Beside) holds(sealed Digest) error {
	switch {
	case len(sealed) == 0 && b.Marked, len(sealed) > 0 && !bytes.Equal(sealed, b.Digest):
		return fmt.Errorf("%w: %w", ErrUnreadable, ErrAltered)
	case len(sealed) == 0 && b.Required:
		return fmt.Errorf("%w: %w", ErrUnreadable, ErrUnbound)
	}
	return nil
}

// SealTokens encrypts all tokens of g as a store keeps them, also the tokens of unproven logins,
// and binds them to beside, the Digest of the rest of the record. With profile, the profile of g is
// sealed too, and need not be stored elsewhere.
func SealTokens(c Cipher, g *Grant, profile bool, beside Digest) ([]byte, error) {
	s := storedGrant(g.Pair, g.Candidate)
	s.Bound = beside
	if profile {
		s.Profile = json.RawMessage(g.Profile)
	}
	return s.seal(c, PurposeStore, g.Key, g.Version)
}

func storedGrant(p Pair, next *Candidate) storedPair {
	s := storedOf(p)
	if next != nil {
		candidate := storedGrant(next.Pair, next.Next)
		s.Candidate = &candidate
	}
	return s
}

// ResealTokens opens the tokens that SealTokens sealed of the grant k at version, and seals the
// same tokens again. was describes the rest of the record until now; now is its Digest from then
// on: the same Digest, or the first Digest of an unbound record. The error wraps ErrUnreadable if
// the tokens do not open.
func ResealTokens(
	c Cipher, k Key, version int64, sealed []byte, was Beside, now Digest,
) ([]byte, error) {
	bound := associated(PurposeStore, k, version)
	plain, err := c.Open(sealed, bound)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	var s storedPair
	var all map[string]json.RawMessage // so that unknown members stay too
	if err := errors.Join(json.Unmarshal(plain, &s), json.Unmarshal(plain, &all)); err != nil {
		return nil, fmt.Errorf("%w: the tokens of %s are not what was sealed", ErrUnreadable, k)
	}
	if err := was.holds(s.Bound); err != nil {
		return nil, err
	}
	if len(s.Bound) == 0 {
		if all[boundMember], err = json.Marshal(now); err != nil {
			return nil, fmt.Errorf("bind the record of %s: %w", k, err)
		}
		if plain, err = json.Marshal(all); err != nil {
			return nil, fmt.Errorf("bind the record of %s: %w", k, err)
		}
	}
	return c.Seal(plain, bound)
}

// boundMember is the name of storedPair's Bound.
const boundMember = "b"

// OpenTokens is the inverse of SealTokens: it puts the tokens into g, which has everything else,
// and the profile if the profile was sealed too. The error wraps ErrUnreadable, and g then has no
// tokens.
func OpenTokens(c Cipher, g *Grant, sealed []byte, beside Beside) error {
	s, err := openStored(c, PurposeStore, g.Key, g.Version, sealed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err := beside.holds(s.Bound); err != nil {
		return err
	}
	g.Pair = s.pair()
	if len(s.Profile) > 0 {
		g.Profile = Profile(s.Profile)
	}
	all := g.Candidate.all()
	for i := range all {
		if s.Candidate == nil {
			return fmt.Errorf("%w: the tokens of a login of %s are missing", ErrUnreadable, g.Key)
		}
		s = *s.Candidate
		all[i].Pair = s.pair()
	}
	g.Candidate = chained(all)
	return nil
}
