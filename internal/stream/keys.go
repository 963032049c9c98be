package stream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// PublishKeys puts the public keys (a JWK Set, RFC 7517) where publishers read them. The same set
// again writes nothing, so every worker may call PublishKeys at its start.
func (e *Engine) PublishKeys(ctx context.Context, jwks []byte) error {
	kv, err := e.Bucket(ctx, topology.BucketKeys)
	if err != nil {
		return fmt.Errorf("publish public keys: %w", err)
	}
	have, err := kv.Get(ctx, schema.KeyPublic)
	switch {
	case err == nil && bytes.Equal(have.Value(), jwks):
		return nil
	case err != nil && !errors.Is(err, jetstream.ErrKeyNotFound):
		return fmt.Errorf("publish public keys: %w", err)
	}
	if _, err := kv.Put(ctx, schema.KeyPublic, jwks); err != nil {
		return fmt.Errorf("publish public keys: %w", err)
	}
	return nil
}

// PublishSignedKeys puts public keys, signed by an offline root, where publishers read them.
func (e *Engine) PublishSignedKeys(ctx context.Context, signed []byte) error {
	kv, err := e.Bucket(ctx, topology.BucketKeys)
	if err != nil {
		return fmt.Errorf("publish signed keys: %w", err)
	}
	if _, err := kv.Put(ctx, schema.KeySigned, signed); err != nil {
		return fmt.Errorf("publish signed keys: %w", err)
	}
	return nil
}

// SignedKeys returns the signed public keys, nil if no keys are stored.
func (e *Engine) SignedKeys(ctx context.Context) ([]byte, error) {
	kv, err := e.Bucket(ctx, topology.BucketKeys)
	if err != nil {
		return nil, fmt.Errorf("read signed keys: %w", err)
	}
	entry, err := kv.Get(ctx, schema.KeySigned)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read signed keys: %w", err)
	}
	return entry.Value(), nil
}

// Keys returns the published public keys, nil if no keys were published yet.
func (e *Engine) Keys(ctx context.Context) ([]byte, error) {
	jwks, _, err := e.KeysSince(ctx)
	return jwks, err
}

// KeysSince is Keys with the time of their last publication, by the NATS server's clock.
func (e *Engine) KeysSince(ctx context.Context) (jwks []byte, since time.Time, err error) {
	kv, err := e.Bucket(ctx, topology.BucketKeys)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read public keys: %w", err)
	}
	entry, err := kv.Get(ctx, schema.KeyPublic)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read public keys: %w", err)
	}
	return entry.Value(), entry.Created(), nil
}

// storeKeysKey has in BucketProviders the ids of the installation's store keys: a provider's id has
// no dot.
const storeKeysKey = "keyring.store"

// PublishStoreKeys puts the ids of the store keys where every worker compares them with its own.
// The same ids again write nothing.
func (e *Engine) PublishStoreKeys(ctx context.Context, ids []string) error {
	there, err := e.StoreKeys(ctx)
	if err != nil || slices.Equal(there, ids) {
		return err
	}
	raw, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err == nil {
		_, err = kv.Put(ctx, storeKeysKey, raw)
	}
	if err != nil {
		return fmt.Errorf("say which store keys there are: %w", err)
	}
	return nil
}

// StoreKeys returns the ids of the last PublishStoreKeys, nil before the first call.
func (e *Engine) StoreKeys(ctx context.Context) (ids []string, err error) {
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return nil, fmt.Errorf("look which store keys there are: %w", err)
	}
	entry, err := kv.Get(ctx, storeKeysKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &ids)
	}
	if err != nil {
		return nil, fmt.Errorf("look which store keys there are: %w", err)
	}
	return ids, nil
}

// retiredKey starts the key in BucketProviders of each retired key: a provider's id has no dot.
const retiredKey = "retired."

// NoteRetired says that the keys of these ids are retired: a worker whose keyring file lacks a
// retired key need not keep the key.
func (e *Engine) NoteRetired(ctx context.Context, ids ...string) error {
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return fmt.Errorf("note that a key is retired: %w", err)
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
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return false, fmt.Errorf("look whether key %s is retired: %w", id, err)
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
