// Package natskv keeps grants in a NATS key-value bucket: the store of an installation without a
// database.
//
// A grant is one key, <provider>.<escaped user>, and its value the record as JSON with the pair
// sealed. The bucket's revision of the key is the grant's, so every write is a compare-and-swap by
// the server. The bucket must be read through its leader only (no direct reads): a replica may
// answer with what was true a moment ago.
//
// The package never calls a provider and never decides anything about a grant. A Store is safe for
// concurrent use, also from many processes. A claim of somebody else runs out when this Store has
// seen it unchanged for as long as it lasts, so that no clock which is set wrong, or set anew, ends
// a claim that is alive.
package natskv

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Config is what a Store stands on; all of it is required.
type Config struct {
	Bucket string // its name; it must exist
	Cipher grant.Cipher
	Now    func() time.Time // the server's time: claims say by it until when they last
	// SealProfiles keeps profiles encrypted, with the tokens. What was stored otherwise is read, and
	// written so with its next save.
	SealProfiles bool
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
		return nil, fmt.Errorf("open bucket %s: it allows direct reads, which may be stale: recreate it with allow_direct off, or run renewd streams apply", c.Bucket)
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
	return decode(s.config.Cipher, k, entry.Value(), entry.Revision())
}

// claimTries bounds how often a claim is tried against other writers of the same grant.
const claimTries = 64

// Claim implements grant.Store.
func (s *Store) Claim(ctx context.Context, k grant.Key, r grant.ClaimRequest) (grant.Grant, *grant.Claim, error) {
	loaded := r.Loaded
	if loaded != nil && !s.free(*loaded, r) {
		loaded = nil // which may be over by now
	}
	for range claimTries {
		g, err := s.loaded(ctx, k, loaded)
		if err != nil {
			return g, nil, fmt.Errorf("claim grant %s: %w", k, err)
		}
		loaded = nil // on a conflict it has changed
		prior := g.Claim
		if !s.free(g, r) {
			return grant.Grant{Key: k}, nil, fmt.Errorf("claim grant %s: %w", k, grant.ErrClaimed)
		}
		g.Claim = r.On(g, s.config.Now())
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
	return grant.Grant{Key: k}, nil, fmt.Errorf("claim grant %s: %w: too many writers", k, grant.ErrClaimed)
}

// loaded is g, which was loaded before, or the record as it is now.
func (s *Store) loaded(ctx context.Context, k grant.Key, g *grant.Grant) (grant.Grant, error) {
	if g != nil {
		return *g, nil
	}
	return s.load(ctx, k)
}

// free reports whether r may have the claim on g: it is r's own, or r may take one and there is
// none, or it has run out.
func (s *Store) free(g grant.Grant, r grant.ClaimRequest) bool {
	switch {
	case g.Claim != nil && g.Claim.Nonce == r.Nonce:
		return true
	case r.Extend:
		return false
	}
	return g.Claim == nil || s.claims.seen(g.Key, g.Revision, time.Now()) >= cmp.Or(g.Claim.For, r.For)
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

// replace writes the record if its revision is still this one. A replicated bucket also refuses a
// write while somebody else's is being looked at that will be refused itself. Only another revision
// is a conflict.
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
		return fmt.Errorf("seal grant %s anew: %w", k, err)
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
	var r record
	var all map[string]json.RawMessage // so that what is not known here stays too
	err = errors.Join(json.Unmarshal(entry.Value(), &r), json.Unmarshal(entry.Value(), &all))
	if err != nil {
		return fmt.Errorf("%w: it is damaged: %w", grant.ErrUnreadable, err)
	}
	sealed, err := grant.ResealTokens(s.config.Cipher, k, r.Version, r.Sealed)
	if err != nil {
		return err
	}
	if all[sealedMember], err = json.Marshal(sealed); err != nil {
		return err
	}
	raw, err := json.Marshal(all)
	if err != nil {
		return err
	}
	_, err = s.replace(ctx, k, revision, raw)
	return err
}

// revision is that of the stored record, 0 if there is none.
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

// Delete implements grant.Store. Nothing stays in the bucket: the mark that takes the record's
// place goes too.
func (s *Store) Delete(ctx context.Context, k grant.Key, revision uint64) error {
	if err := s.erase(ctx, k, revision); err != nil {
		return fmt.Errorf("delete grant %s: %w", k, err)
	}
	return nil
}

// erase replaces the record by a mark, since only a write is a compare-and-swap, and then removes
// the mark. What somebody wrote after the mark has a higher sequence and stays.
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
	mark := &nats.Msg{Subject: s.subject(k), Header: nats.Header{"KV-Operation": {"PURGE"}, jetstream.MsgRollup: {jetstream.MsgRollupSubject}}}
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

// purge removes what the key's subject holds up to a sequence.
func (s *Store) purge(ctx context.Context, k grant.Key, upTo uint64) error {
	return s.stream.Purge(ctx, jetstream.WithPurgeSubject(s.subject(k)), jetstream.WithPurgeSequence(upTo+1))
}

// conflict reports whether a compare-and-swap was refused. A replicated bucket says so in other
// words than a single one.
func conflict(err error) bool {
	if errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return true
	}
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// told is the error of a write as the contract names it.
func told(err error) error {
	switch {
	case conflict(err):
		return grant.ErrConflict
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, jetstream.ErrStreamMessageExceedsMaximum):
		return fmt.Errorf("%w: %w", grant.ErrRefused, err)
	}
	return err
}

// sealedMember is the name of record's Sealed.
const sealedMember = "sealed"
