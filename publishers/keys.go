package publishers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/seal"
)

// Where renewd publishes its public key.
const (
	keysBucket = "renewd_keys"
	keysKey    = "jwks"
	// keysFresh is how long a fetched key is used. renewd keeps old private keys for days, so a key
	// just replaced still works.
	keysFresh = 5 * time.Minute
)

// keys caches renewd's public key.
type keys struct {
	js     jetstream.JetStream
	bucket string
	fixed  []byte
	pins   []string // thumbprints of the keys that may be sealed to; none: any

	mu   sync.Mutex
	jwks []byte
	at   time.Time
}

// get returns the key set, fetched again when the cached one is old; if that fails the old one
// serves on.
func (k *keys) get(ctx context.Context) ([]byte, error) {
	if k.fixed != nil {
		return k.fixed, k.check(k.fixed)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.jwks != nil && time.Since(k.at) < keysFresh {
		return k.jwks, nil
	}
	jwks, err := k.fetch(ctx)
	if err == nil {
		err = k.check(jwks)
	}
	if errors.Is(err, seal.ErrPin) && k.jwks == nil {
		return nil, fmt.Errorf("renewd's public key in the KV bucket %s: %w: is it a fresh one, of renewd keys promote? Then pin what renewd keys list shows; else somebody has replaced it, and wants to read logins",
			k.bucket, err)
	}
	if err != nil {
		if k.jwks != nil {
			return k.jwks, nil
		}
		return nil, fmt.Errorf("fetch renewd's public key from the KV bucket %s: %w; has renewd been started on this NATS? Else give the key with WithJWKS", k.bucket, err)
	}
	k.jwks, k.at = jwks, time.Now()
	return jwks, nil
}

func (k *keys) check(jwks []byte) error {
	if len(k.pins) == 0 {
		return nil
	}
	return seal.CheckPins(jwks, k.pins)
}

func (k *keys) fetch(ctx context.Context) ([]byte, error) {
	bucket, err := k.js.KeyValue(ctx, k.bucket)
	if err != nil {
		return nil, err
	}
	entry, err := bucket.Get(ctx, keysKey)
	if err != nil {
		return nil, err
	}
	return entry.Value(), nil
}
