// Package natskv keeps grants in a NATS key-value bucket: the store of an installation without a
// database.
//
// A grant is one key, <provider>.<escaped user>, and its value the record as JSON with the pair
// sealed. The bucket's revision of the key is the grant's revision, so every write is a
// compare-and-swap by the server. The bucket must be read through its leader only (no direct
// reads), since a replica may answer with an older record.
//
// The package never calls a provider and never decides anything about a grant. A Store is safe for
// concurrent use, also from many processes. Another writer's claim runs out when this Store has
// seen the claim unchanged for the claim's full length. So a clock set wrong, or set again, never
// ends a live claim.
package natskv

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Config is a Store's settings. Bucket, Cipher and Now are required.
type Config struct {
	Bucket string // its name; the bucket must exist
	Cipher grant.Cipher
	Now    func() time.Time // the server's time, by which claims say when they end
	// SealProfiles keeps profiles encrypted, with the tokens. A profile stored in the other form is
	// read, and takes this form with its next save.
	SealProfiles bool
	// RequireBound reads only bound records, which only renewd can have written. Default: records
	// of versions without bound records are read too. See grant.Digest.
	RequireBound bool
}

// Store is a grant.Store.
type Store struct {
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	stream jetstream.Stream
	config Config
	claims sightings
}

var _ grant.Store = (*Store)(nil)

// Open opens the bucket, which must exist and be read through its leader.
func Open(ctx context.Context, js jetstream.JetStream, c Config) (*Store, error) {
	kv, err := js.KeyValue(ctx, c.Bucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w; run renewd streams apply", c.Bucket, err)
	}
	s, err := js.Stream(ctx, "KV_"+c.Bucket)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", c.Bucket, err)
	}
	if s.CachedInfo().Config.AllowDirect {
		return nil, fmt.Errorf("open bucket %s: it allows direct reads, which may be stale: "+
			"recreate it with allow_direct off, or run renewd streams apply", c.Bucket)
	}
	return &Store{js: js, kv: kv, stream: s, config: c}, nil
}

func keyOf(k grant.Key) string { return k.Provider + "." + schema.EscapeUser(k.User) }

func (s *Store) subject(k grant.Key) string { return "$KV." + s.config.Bucket + "." + keyOf(k) }

// Load implements grant.Store.
func (s *Store) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	g, err := s.load(ctx, k)
	if err != nil {
		return g, fmt.Errorf("load grant %s: %w", k, err)
	}
	return g, nil
}

func (s *Store) load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	entry, err := s.kv.Get(ctx, keyOf(k))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return grant.Grant{Key: k}, grant.ErrNotFound
	}
	if err != nil {
		return grant.Grant{Key: k}, err
	}
	g, _, err := decode(s.config.Cipher, k, entry.Value(), entry.Revision(), s.config.RequireBound)
	return g, err
}

// claimTries bounds how often a claim is tried against other writers of the same grant.
const claimTries = 64

// Claim implements grant.Store.
func (s *Store) Claim(
	ctx context.Context, k grant.Key, r grant.ClaimRequest,
) (grant.Grant, *grant.Claim, error) {
	loaded := r.Loaded
	if loaded != nil && !s.free(*loaded, r) {
		loaded = nil // its claim may be over by now
	}
	for range claimTries {
		g, err := s.loaded(ctx, k, loaded)
		if err != nil {
			return g, nil, fmt.Errorf("claim grant %s: %w", k, err)
		}
		loaded = nil // on a conflict the record has changed
		prior := g.Claim
		if !s.free(g, r) {
			return grant.Grant{Key: k}, nil, fmt.Errorf("claim grant %s: %w", k, grant.ErrClaimed)
		}
		g.Claim = r.On(&g, s.config.Now())
		rev, err := s.Save(ctx, g)
		if errors.Is(err, grant.ErrConflict) {
			continue
		}
		if err != nil {
			return grant.Grant{Key: k}, nil, fmt.Errorf("claim grant %s: %w", k, err)
		}
		g.Revision = rev
		return g, prior, nil
	}
	return grant.Grant{Key: k}, nil, fmt.Errorf("claim grant %s: %w: too many writers", k,
		grant.ErrClaimed)
}

// loaded is g, which was loaded before, or the present record.
func (s *Store) loaded(ctx context.Context, k grant.Key, g *grant.Grant) (grant.Grant, error) {
	if g != nil {
		return *g, nil
	}
	return s.load(ctx, k)
}

// free reports whether r may have the claim on g: the claim is r's own, or r may take a claim and
// the record has no claim, or an expired one.
func (s *Store) free(g grant.Grant, r grant.ClaimRequest) bool {
	switch {
	case g.Claim != nil && g.Claim.Nonce == r.Nonce:
		return true
	case r.Extend:
		return false
	}
	return g.Claim == nil ||
		s.claims.seen(g.Key, g.Revision, time.Now()) >= cmp.Or(g.Claim.For, r.For)
}

// Save implements grant.Store.
func (s *Store) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	raw, err := encode(s.config.Cipher, g, s.config.SealProfiles)
	if err != nil {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, err)
	}
	rev, err := s.replace(ctx, g.Key, g.Revision, raw)
	if err != nil {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, err)
	}
	return rev, nil
}

// replace writes the record if the stored revision is still revision. A replicated bucket also
// refuses a write while it decides on another write of the key, even if it then refuses the other
// write too. Only a changed revision is a conflict.
func (s *Store) replace(
	ctx context.Context, k grant.Key, revision uint64, raw []byte,
) (uint64, error) {
	rev, err := s.write(ctx, k, revision, raw)
	for tries := 0; conflict(err) && tries < claimTries; tries++ {
		now, err := s.revision(ctx, k)
		if err != nil {
			return 0, err
		}
		if now != revision {
			return 0, grant.ErrConflict
		}
		if rev, err = s.write(ctx, k, revision, raw); !conflict(err) {
			return rev, told(err)
		}
	}
	return rev, told(err)
}

func (s *Store) write(
	ctx context.Context, k grant.Key, revision uint64, raw []byte,
) (uint64, error) {
	if revision == 0 {
		return s.kv.Create(ctx, keyOf(k), raw)
	}
	return s.kv.Update(ctx, keyOf(k), raw, revision)
}

// Reseal implements grant.Store.
func (s *Store) Reseal(ctx context.Context, k grant.Key, revision uint64) error {
	if err := s.reseal(ctx, k, revision); err != nil {
		return fmt.Errorf("re-seal grant %s: %w", k, err)
	}
	return nil
}

func (s *Store) reseal(ctx context.Context, k grant.Key, revision uint64) error {
	entry, err := s.kv.Get(ctx, keyOf(k))
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return grant.ErrNotFound
	case err != nil:
		return err
	case entry.Revision() != revision:
		return grant.ErrConflict
	}
	raw, err := reseal(s.config.Cipher, k, entry.Value(), s.config.RequireBound)
	if err != nil {
		return err
	}
	_, err = s.replace(ctx, k, revision, raw)
	return err
}

// revision is the stored record's, 0 if no record is stored.
func (s *Store) revision(ctx context.Context, k grant.Key) (uint64, error) {
	entry, err := s.kv.Get(ctx, keyOf(k))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return entry.Revision(), nil
}

// Delete implements grant.Store. Nothing stays in the bucket: the mark in the record's place goes
// too.
func (s *Store) Delete(ctx context.Context, k grant.Key, revision uint64) error {
	if err := s.erase(ctx, k, revision); err != nil {
		return fmt.Errorf("delete grant %s: %w", k, err)
	}
	return nil
}

// erase replaces the record by a mark, since only a write is a compare-and-swap, and then removes
// the mark. Anything another writer wrote after the mark has a higher sequence and stays.
func (s *Store) erase(ctx context.Context, k grant.Key, revision uint64) error {
	last, err := s.stream.GetLastMsgForSubject(ctx, s.subject(k))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return grant.ErrNotFound
	case err != nil:
		return err
	case removed(last.Header): // of an erasure that was cut short
		if err := s.purge(ctx, k, last.Sequence); err != nil {
			return err
		}
		return grant.ErrNotFound
	}
	mark := &nats.Msg{
		Subject: s.subject(k),
		Header: nats.Header{
			"KV-Operation":      {"PURGE"},
			jetstream.MsgRollup: {jetstream.MsgRollupSubject},
		},
	}
	ack, err := s.js.PublishMsg(ctx, mark, jetstream.WithExpectLastSequencePerSubject(revision))
	if err != nil {
		return told(err)
	}
	return s.purge(ctx, k, ack.Sequence)
}

// removed reports whether a message with these headers says that the key is gone.
func removed(h nats.Header) bool {
	op := h.Get("KV-Operation")
	return op != "" && op != "PUT"
}

// purge removes the messages of the key's subject up to a sequence.
func (s *Store) purge(ctx context.Context, k grant.Key, upTo uint64) error {
	return s.stream.Purge(ctx, jetstream.WithPurgeSubject(s.subject(k)),
		jetstream.WithPurgeSequence(upTo+1))
}

// conflict reports whether a compare-and-swap was refused. A replicated bucket refuses with another
// error than a single server's.
func conflict(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
			api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// told is the error of a write in grant.Store's terms.
func told(err error) error {
	switch {
	case conflict(err):
		return grant.ErrConflict
	case errors.Is(err, nats.ErrMaxPayload),
		errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return fmt.Errorf("%w: %w", grant.ErrRefused, err)
	}
	return err
}
