package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// keysKey is where publishers look for the public keys in BucketKeys.
const keysKey = "jwks"

// PublishKeys puts the public keys (a JWK Set, RFC 7517) where publishers read them. The same set
// again writes nothing, so that every worker may call it when it starts.
func (e *Engine) PublishKeys(ctx context.Context, jwks []byte) error {
	kv, err := e.js.KeyValue(ctx, e.config.Subjects.Name(BucketKeys))
	if err != nil {
		return fmt.Errorf("publish public keys: bucket %s: %w", e.config.Subjects.Name(BucketKeys), err)
	}
	have, err := kv.Get(ctx, keysKey)
	switch {
	case err == nil && bytes.Equal(have.Value(), jwks):
		return nil
	case err != nil && !errors.Is(err, jetstream.ErrKeyNotFound):
		return fmt.Errorf("publish public keys: %w", err)
	}
	if _, err := kv.Put(ctx, keysKey, jwks); err != nil {
		return fmt.Errorf("publish public keys: %w", err)
	}
	return nil
}

// Keys returns the published public keys, nil if there are none yet.
func (e *Engine) Keys(ctx context.Context) ([]byte, error) {
	jwks, _, err := e.KeysSince(ctx)
	return jwks, err
}

// KeysSince is Keys with the time, by the NATS server's clock, at which they were last published.
func (e *Engine) KeysSince(ctx context.Context) (jwks []byte, since time.Time, err error) {
	kv, err := e.js.KeyValue(ctx, e.config.Subjects.Name(BucketKeys))
	if err != nil {
		name := e.config.Subjects.Name(BucketKeys)
		return nil, time.Time{}, fmt.Errorf("read public keys: bucket %s: %w", name, err)
	}
	entry, err := kv.Get(ctx, keysKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read public keys: %w", err)
	}
	return entry.Value(), entry.Created(), nil
}

// retiredKey starts the key in BucketProviders of each key that was retired: a provider's id has no
// dot.
const retiredKey = "retired."

// NoteRetired says that the keys of these ids are retired: a worker whose keyring file lacks one
// need not keep it.
func (e *Engine) NoteRetired(ctx context.Context, ids ...string) error {
	kv, err := e.workers(ctx)
	if err != nil {
		return err
	}
	now := []byte(e.Now().UTC().Format(time.RFC3339))
	for _, id := range ids {
		if _, err := kv.Put(ctx, retiredKey+schema.EscapeUser(id), now); err != nil {
			return fmt.Errorf("note that key %s is retired: %w", id, err)
		}
	}
	return nil
}

// Retired reports whether NoteRetired named the key.
func (e *Engine) Retired(ctx context.Context, id string) (bool, error) {
	kv, err := e.workers(ctx)
	if err != nil {
		return false, err
	}
	_, err = kv.Get(ctx, retiredKey+schema.EscapeUser(id))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether key %s is retired: %w", id, err)
	}
	return true, nil
}
