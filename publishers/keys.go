package publishers

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/schema"
)

// keysFresh is how long a fetched key is used. renewd keeps old private keys for days, so a key
// just replaced still works.
const keysFresh = 5 * time.Minute

// keys caches renewd's public key.
type keys struct {
	js     jetstream.JetStream
	bucket string
	fixed  []byte
	pins   []string // thumbprints of the keys to seal to; empty: any key
	roots  []string // public keys that may sign the key set; empty: no signature is needed

	mu    sync.Mutex
	jwks  []byte
	at    time.Time
	until time.Time // when the signature of jwks ends; zero: no signature is needed
}

// get returns the key set, fetched again when the cached set is old. If the fetch fails the old set
// stays in use.
func (k *keys) get(ctx context.Context) ([]byte, error) {
	if k.fixed != nil {
		jwks, _, err := k.check(k.fixed)
		return jwks, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.expire(time.Now())
	if k.jwks != nil && time.Since(k.at) < keysFresh {
		return k.jwks, nil
	}
	jwks, until, err := k.fetch(ctx)
	if errors.Is(err, seal.ErrRoot) && k.jwks == nil {
		return nil, fmt.Errorf("renewd's signed public keys in the KV bucket %s: %w: an "+
			"operator signs them with renewd keys sign, and puts them there with renewd keys "+
			"publish --signed; if that was done, somebody has replaced them, and wants to "+
			"read logins", k.bucket, err)
	}
	if errors.Is(err, seal.ErrPin) && k.jwks == nil {
		return nil, fmt.Errorf("renewd's public key in the KV bucket %s: %w: is it a fresh one, "+
			"of renewd keys promote? Then pin what renewd keys list shows; else somebody has "+
			"replaced it, and wants to read logins",
			k.bucket, err)
	}
	if err != nil {
		if k.jwks != nil {
			return k.jwks, nil
		}
		hint := "has renewd been started on this NATS? Else give the key with WithJWKS"
		if len(k.roots) > 0 {
			hint = "has an operator signed the keys (renewd keys sign), and put them there " +
				"(renewd keys publish --signed)?"
		}
		return nil, fmt.Errorf("fetch renewd's public key from the KV bucket %s: %w; %s", k.bucket,
			err, hint)
	}
	k.jwks, k.at, k.until = jwks, time.Now(), until
	return jwks, nil
}

// expire drops a key set whose signature has expired. Such a set goes out of use, unlike a set that
// only cannot be fetched again. The caller holds k.mu.
func (k *keys) expire(now time.Time) {
	if !k.until.IsZero() && !now.Before(k.until) {
		k.jwks = nil
	}
}

// check checks a key set, fetched or given, against the roots and the pins. check returns the bare
// key set, and when its signature ends.
func (k *keys) check(got []byte) (jwks []byte, until time.Time, err error) {
	jwks = got
	if len(k.roots) > 0 {
		signed, err := seal.OpenSigned(got, time.Now(), k.roots...)
		if err != nil {
			return nil, time.Time{}, err
		}
		jwks, until = signed.JWKS, signed.Until
	}
	if len(k.pins) > 0 {
		err = seal.CheckPins(jwks, k.pins)
	}
	return jwks, until, err
}

func (k *keys) fetch(ctx context.Context) (jwks []byte, until time.Time, err error) {
	bucket, err := k.js.KeyValue(ctx, k.bucket)
	if err != nil {
		return nil, time.Time{}, err
	}
	key := schema.KeyPublic
	if len(k.roots) > 0 {
		key = schema.KeySigned
	}
	entry, err := bucket.Get(ctx, key)
	if err != nil {
		return nil, time.Time{}, err
	}
	return k.check(entry.Value())
}
