package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/seal"
)

// liveKeys is the keyring of a process as its file has it now, so that a fresh key needs no
// restart. Safe for concurrent use.
type liveKeys struct {
	file    keyFile
	ring    atomic.Pointer[seal.Keyring]
	changed chan struct{}    // a keyring was read
	names   *pseudonym.Names // hashes user ids under a key of the ring; nil: none does

	last decoded // of watch alone
}

// decoded is what was in the file when it was last looked at.
type decoded struct {
	raw  []byte
	ring *seal.Keyring
	err  error
	at   time.Time
}

func newLiveKeys(file keyFile, ring *seal.Keyring, names *pseudonym.Names) *liveKeys {
	k := &liveKeys{file: file, changed: make(chan struct{}, 1), names: names}
	k.use(ring)
	return k
}

// use also gives the ring's key to the hashes of user ids: all workers must have the same, also after
// the oldest store key was retired.
func (k *liveKeys) use(ring *seal.Keyring) {
	k.ring.Store(ring)
	k.names.Use(ring.NamesKey())
}

// Seal and Open are the keyring's; Open of any key it has.
func (k *liveKeys) Seal(plain, associated []byte) ([]byte, error) {
	return k.ring.Load().Seal(plain, associated)
}

func (k *liveKeys) Open(blob, associated []byte) ([]byte, error) {
	return k.ring.Load().Open(blob, associated)
}

// OpenLogin is the keyring's.
func (k *liveKeys) OpenLogin(jwe string) (seal.Login, error) { return k.ring.Load().OpenLogin(jwe) }

// published is Keyring.Published.
func (k *liveKeys) published(jwks []byte) bool { return k.ring.Load().Published(jwks) }

// JWKS is the keyring's.
func (k *liveKeys) JWKS() []byte { return k.ring.Load().JWKS() }

// old are the store keys that records are to leave.
func (k *liveKeys) old() []string { return k.ring.Load().Old() }

// ids are of all keys that open, and of those that seal.
func (k *liveKeys) ids() (opens, seals []string) {
	ring := k.ring.Load()
	return idsOf(ring), sealing(ring)
}

func sealing(ring *seal.Keyring) (ids []string) {
	for _, key := range ring.Keys() {
		if key.Current {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

func idsOf(ring *seal.Keyring) (ids []string) {
	for _, key := range ring.Keys() {
		ids = append(ids, key.ID)
	}
	return ids
}

const (
	// keysEvery is how often the file is looked at.
	keysEvery = 2 * time.Second
	// unwrapEvery is how often a file that did not change and could not be read is unwrapped.
	unwrapEvery = time.Minute
)

// retiredKeys reports whether the key of this id was retired.
type retiredKeys func(ctx context.Context, id string) (bool, error)

// watch reads the file again when it changed, until ctx ends, and has a new public key published. A
// file that cannot be read, or lacks a key that was there before, changes nothing: what waits may
// need that key. A key that was retired may be gone.
func (k *liveKeys) watch(
	ctx context.Context, log *slog.Logger, publish func(context.Context) error, retired retiredKeys,
) error {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	var said string
	say := func(text string, err error) {
		if said != text+err.Error() {
			log.Error(text, "file", k.file.path, "error", err)
		}
		said = text + err.Error()
	}
	unpublished := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		before := k.ring.Load()
		switch again, err := k.read(ctx, retired); {
		case err != nil:
			say("the keyring cannot be read again, and stays as it was", err)
		case again != nil:
			said = ""
			log.Info("read the keyring again", "file", k.file.path, "keys", len(again.Keys()))
			unpublished = unpublished || !bytes.Equal(before.JWKS(), again.JWKS())
		}
		if unpublished {
			if err := publish(ctx); err != nil {
				say("the new public key cannot be published yet", err)
				continue
			}
			unpublished = false
		}
	}
}

// read takes up what the file has; nil where that is nothing new.
func (k *liveKeys) read(ctx context.Context, retired retiredKeys) (*seal.Keyring, error) {
	again, err := k.decode(ctx)
	if err != nil {
		return nil, err
	}
	have := k.ring.Load()
	known, err := have.Marshal()
	if err != nil {
		return nil, err
	}
	if now, err := again.Marshal(); err != nil || bytes.Equal(known, now) {
		return nil, err
	}
	ids := idsOf(again)
	for _, id := range idsOf(have) {
		if slices.Contains(ids, id) {
			continue
		}
		gone, err := retired(ctx, id)
		if err != nil {
			return nil, err
		}
		if !gone {
			return nil, fmt.Errorf("key %s is no longer in it, and was not retired: put it back, "+
				"and take it out with renewd keys retire", id)
		}
	}
	k.use(again)
	select {
	case k.changed <- struct{}{}:
	default:
	}
	return again, nil
}

// decode is what the file has. A program that unwraps it, which may call a service, is run for a
// file that changed alone.
func (k *liveKeys) decode(ctx context.Context) (*seal.Keyring, error) {
	raw, err := k.file.read()
	if err != nil {
		return nil, err
	}
	l := k.last
	again := l.err != nil && time.Since(l.at) >= unwrapEvery
	if again || l.at.IsZero() || !bytes.Equal(raw, l.raw) {
		ring, err := k.file.decode(ctx, raw)
		k.last = decoded{raw, ring, err, time.Now()}
	}
	return k.last.ring, k.last.err
}

// announce lets the others know which keys this process has.
func (p *plant) announce(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return p.engine.Announce(ctx, nuid.Next(), host, p.keys.ids, p.keys.changed, func(err error) {
		p.log.Warn("renewd keys promote will not know of this worker", "error", err)
	})
}
