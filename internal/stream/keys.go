package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
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
	kv, err := e.js.KeyValue(ctx, e.config.Subjects.Name(BucketKeys))
	if err != nil {
		return nil, fmt.Errorf("read public keys: bucket %s: %w", e.config.Subjects.Name(BucketKeys), err)
	}
	entry, err := kv.Get(ctx, keysKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read public keys: %w", err)
	}
	return entry.Value(), nil
}
