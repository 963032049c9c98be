// Package natskv keeps grants in a NATS key-value bucket: the store of an installation without a database.
//
// A grant is one key, <provider>.<escaped user>, and its value the record as JSON with the pair sealed. The bucket's
// revision of the key is the grant's, so every write is a compare-and-swap by the server. The bucket must be read through
// its leader only (no direct reads): a replica may answer with what was true a moment ago.
//
// The package never calls a provider and never decides anything about a grant. A Store is safe for concurrent use, also
// from many processes; claims run by the clock it is given, which must be the NATS server's.
package natskv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Config is what a Store stands on; all of it is required.
type Config struct {
	Bucket string // its name; it must exist
	Cipher grant.Cipher
	Now    func() time.Time // the server's time
}

// Store is a grant.Store.
type Store struct {
	js     jetstream.JetStream
	kv     jetstream.KeyValue
	stream jetstream.Stream
	config Config
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

// Load implements grant.Store.
func (s *Store) Load(ctx context.Context, k grant.Key) (grant.Grant, error) {
	entry, err := s.kv.Get(ctx, keyOf(k))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return grant.Grant{}, fmt.Errorf("load grant %s: %w", k, grant.ErrNotFound)
	}
	if err != nil {
		return grant.Grant{}, fmt.Errorf("load grant %s: %w", k, err)
	}
	g, err := s.decode(k, entry.Value(), entry.Revision())
	if err != nil {
		return g, fmt.Errorf("load grant %s: %w", k, err)
	}
	return g, nil
}

// claimTries bounds how often a claim is tried against other writers of the same grant.
const claimTries = 64

// Claim implements grant.Store.
func (s *Store) Claim(ctx context.Context, k grant.Key, r grant.ClaimRequest) (grant.Grant, *grant.Claim, error) {
	for range claimTries {
		g, err := s.Load(ctx, k)
		if err != nil {
			return grant.Grant{}, nil, err
		}
		prior, now := g.Claim, s.config.Now()
		if prior != nil && prior.Nonce != r.Nonce && now.Before(prior.Until) {
			return grant.Grant{}, nil, fmt.Errorf("claim grant %s: %w", k, grant.ErrClaimed)
		}
		used := r.Presented || prior != nil && prior.Nonce == r.Nonce && prior.Presented
		g.Claim = &grant.Claim{Nonce: r.Nonce, Until: now.Add(r.For).UTC(), Fingerprint: g.Fingerprint(), Cause: r.Cause, Presented: used}
		rev, err := s.Save(ctx, g)
		if errors.Is(err, grant.ErrConflict) {
			continue
		}
		if err != nil {
			return grant.Grant{}, nil, fmt.Errorf("claim grant %s: %w", k, err)
		}
		g.Revision = rev
		return g, prior, nil
	}
	return grant.Grant{}, nil, fmt.Errorf("claim grant %s: %w: too many writers", k, grant.ErrClaimed)
}

// Save implements grant.Store.
func (s *Store) Save(ctx context.Context, g grant.Grant) (uint64, error) {
	raw, err := s.encode(g)
	if err != nil {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, err)
	}
	rev, err := s.write(ctx, g, raw)
	// A replicated bucket also refuses a write while somebody else's is being looked at that will be refused itself. Only
	// another revision is a conflict.
	for tries := 0; conflict(err) && tries < claimTries; tries++ {
		now, lookErr := s.revision(ctx, g.Key)
		if lookErr != nil {
			return 0, fmt.Errorf("save grant %s: %w", g.Key, lookErr)
		}
		if now != g.Revision {
			break
		}
		rev, err = s.write(ctx, g, raw)
	}
	if conflict(err) {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, grant.ErrConflict)
	}
	if err != nil {
		return 0, fmt.Errorf("save grant %s: %w", g.Key, err)
	}
	return rev, nil
}

func (s *Store) write(ctx context.Context, g grant.Grant, raw []byte) (uint64, error) {
	if g.Revision == 0 {
		return s.kv.Create(ctx, keyOf(g.Key), raw)
	}
	return s.kv.Update(ctx, keyOf(g.Key), raw, g.Revision)
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

// Delete implements grant.Store. Nothing of the record stays in the bucket but the mark that it was removed.
func (s *Store) Delete(ctx context.Context, k grant.Key, revision uint64) error {
	if _, err := s.kv.Get(ctx, keyOf(k)); errors.Is(err, jetstream.ErrKeyNotFound) {
		return fmt.Errorf("delete grant %s: %w", k, grant.ErrNotFound)
	}
	err := s.kv.Purge(ctx, keyOf(k), jetstream.LastRevision(revision))
	if conflict(err) {
		return fmt.Errorf("delete grant %s: %w", k, grant.ErrConflict)
	}
	if err != nil {
		return fmt.Errorf("delete grant %s: %w", k, err)
	}
	return nil
}

// conflict reports whether a compare-and-swap was refused. A replicated bucket says so in other words than a single one.
func conflict(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
}

// List implements grant.Store. The cursor is a sequence of the bucket's stream.
func (s *Store) List(ctx context.Context, cursor string, limit int) (page []grant.Listed, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		var g grant.Grant
		if err == nil {
			g, err = s.decode(k, m.Data, m.Sequence)
		}
		g.Key = k
		page = append(page, grant.Listed{Grant: g, Err: err})
	})
	return page, next, err
}

// ListDue implements grant.Store. The cursor is a sequence of the bucket's stream.
func (s *Store) ListDue(ctx context.Context, cursor string, limit int) (page []grant.Due, next string, err error) {
	next, err = s.each(ctx, cursor, limit, func(k grant.Key, m *jetstream.RawStreamMsg, err error) {
		var r record
		if err == nil && json.Unmarshal(m.Data, &r) != nil {
			r = record{}
		}
		d := r.Grant.Due()
		d.Key = k
		page = append(page, d)
	})
	return page, next, err
}

// each reads up to limit records from the cursor on. A grant written during a walk moves ahead of it and is met again, so
// none is missed. Records are read one by one from the stream's leader: a consumer would be quicker, but may sit on a
// replica that lags behind, and half a walk looks like a whole one.
func (s *Store) each(
	ctx context.Context, cursor string, limit int, see func(grant.Key, *jetstream.RawStreamMsg, error),
) (next string, err error) {
	at := uint64(1)
	if cursor != "" {
		if at, err = strconv.ParseUint(cursor, 10, 64); err != nil {
			return "", fmt.Errorf("list grants: cursor %q: not one of ours", cursor)
		}
	}
	for range limit {
		m, err := s.stream.GetMsg(ctx, at, jetstream.WithGetMsgSubject("$KV."+s.config.Bucket+".>"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("list grants: %w", err)
		}
		if op := m.Header.Get("KV-Operation"); op == "" || op == "PUT" {
			k, err := s.keyOf(m.Subject)
			see(k, m, err)
		}
		at = m.Sequence + 1
	}
	return strconv.FormatUint(at, 10), nil
}

func (s *Store) keyOf(subject string) (grant.Key, error) {
	provider, token, _ := strings.Cut(strings.TrimPrefix(subject, "$KV."+s.config.Bucket+"."), ".")
	user, err := schema.UnescapeUser(token)
	return grant.Key{Provider: provider, User: user}, err
}

// record is a grant as it is kept: everything but the key, the revision and the plain pair.
type record struct {
	Sealed []byte `json:"sealed"`
	grant.Grant
	// These hide the fields of Grant that have their own place.
	Key      *struct{} `json:"Key,omitempty"`
	Provider *struct{} `json:"Provider,omitempty"`
	User     *struct{} `json:"User,omitempty"`
	Revision *struct{} `json:"Revision,omitempty"`
	Pair     *struct{} `json:"Pair,omitempty"`
}

func (s *Store) encode(g grant.Grant) ([]byte, error) {
	sealed, err := grant.SealPair(s.config.Cipher, grant.PurposeStore, g.Key, g.Version, g.Pair)
	if err != nil {
		return nil, err
	}
	return json.Marshal(record{Sealed: sealed, Grant: g})
}

func (s *Store) decode(k grant.Key, raw []byte, rev uint64) (grant.Grant, error) {
	var r record
	if err := json.Unmarshal(raw, &r); err != nil {
		return grant.Grant{Key: k, Revision: rev}, fmt.Errorf("record is damaged: %w", err)
	}
	g := r.Grant
	g.Key, g.Revision = k, rev
	pair, err := grant.OpenPair(s.config.Cipher, grant.PurposeStore, k, g.Version, r.Sealed)
	if err != nil {
		return g, err
	}
	g.Pair = pair
	return g, nil
}
