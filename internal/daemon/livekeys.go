package daemon

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

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

// LiveKeys is the keyring of a process as its files have it now, so that a fresh key needs no
// restart. Safe for concurrent use.
type LiveKeys struct {
	files   keyfile.Files
	ring    atomic.Pointer[seal.Keyring]
	changed chan struct{}    // a keyring was read
	names   *pseudonym.Names // hashes user ids under a key of the ring; nil: no hashes
	// before is called with a new keyring before its first use; may be nil. After an error the
	// keyring stays as it was.
	before func(*seal.Keyring) error

	last []decoded // of each file; of watch alone
}

// decoded is the content of a file at the last look.
type decoded struct {
	raw  []byte
	ring *seal.Keyring
	err  error
	at   time.Time
}

func NewLiveKeys(files keyfile.Files, ring *seal.Keyring, names *pseudonym.Names) *LiveKeys {
	k := &LiveKeys{
		files: files, changed: make(chan struct{}, 1), names: names,
		last: make([]decoded, len(files)),
	}
	k.Use(ring)
	return k
}

// Use also gives the ring's key to the hashes of user ids: all workers must have the same key, also
// after the oldest store key was retired.
func (k *LiveKeys) Use(ring *seal.Keyring) {
	k.ring.Store(ring)
	k.names.Use(ring.NamesKey())
}

// Seal and Open are the keyring's; Open takes any key of the keyring.
func (k *LiveKeys) Seal(plain, associated []byte) ([]byte, error) {
	return k.ring.Load().Seal(plain, associated)
}

func (k *LiveKeys) Open(blob, associated []byte) ([]byte, error) {
	return k.ring.Load().Open(blob, associated)
}

// OpenLogin is the keyring's.
func (k *LiveKeys) OpenLogin(jwe string) (seal.Login, error) { return k.ring.Load().OpenLogin(jwe) }

// Published is Keyring.Published.
func (k *LiveKeys) Published(jwks []byte) bool { return k.ring.Load().Published(jwks) }

// JWKS is the keyring's.
func (k *LiveKeys) JWKS() []byte { return k.ring.Load().JWKS() }

// Old are the store keys to replace in records.
func (k *LiveKeys) Old() []string { return k.ring.Load().Old() }

// TakesLogins reports whether there are login keys.
func (k *LiveKeys) TakesLogins() bool { return k.JWKS() != nil }

// StoreIDs are the ids of the store keys.
func (k *LiveKeys) StoreIDs() []string { return k.ring.Load().Only(seal.UseStore).IDs() }

// IDs are the ids of all keys that open, and of the keys that seal.
func (k *LiveKeys) IDs() (opens, seals []string) {
	ring := k.ring.Load()
	return ring.IDs(), ring.Sealing()
}

const (
	// keysEvery is how often the files are looked at.
	keysEvery = 2 * time.Second
	// unwrapEvery is how often an unchanged file that could not be read is unwrapped.
	unwrapEvery = time.Minute
)

// retiredKeys reports whether the key of this id was retired.
type retiredKeys func(ctx context.Context, id string) (bool, error)

// watch reads a file again when it changed, until ctx ends, and has new keys published. A file that
// cannot be read, or that lacks an earlier key, changes nothing: waiting messages may need that
// key. A retired key may be gone.
func (k *LiveKeys) watch(
	ctx context.Context, log *slog.Logger, publish func(context.Context) error, retired retiredKeys,
) error {
	tick := time.NewTicker(keysEvery)
	defer tick.Stop()
	var said string
	say := func(text string, err error) {
		if said != text+err.Error() {
			log.Error(text, "file", k.files, "error", err)
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
			log.Info("read the keyring again", "file", k.files, "keys", len(again.Keys()))
			unpublished = unpublished || !bytes.Equal(before.JWKS(), again.JWKS()) ||
				!slices.Equal(before.Only(seal.UseStore).IDs(), again.Only(seal.UseStore).IDs())
		}
		if unpublished {
			if err := publish(ctx); err != nil {
				say("the new keys cannot be published yet", err)
				continue
			}
			unpublished = false
		}
	}
}

// read takes up new keys in the files; nil where nothing is new.
func (k *LiveKeys) read(ctx context.Context, retired retiredKeys) (*seal.Keyring, error) {
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
	ids := again.IDs()
	for _, id := range have.IDs() {
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
	if k.before != nil {
		if err := k.before(again); err != nil {
			return nil, err
		}
	}
	k.Use(again)
	select {
	case k.changed <- struct{}{}:
	default:
	}
	return again, nil
}

// decode is the keyring in the files. A program that unwraps a file may call a service. It runs
// only for a changed file, and after a failure each unwrapEvery.
func (k *LiveKeys) decode(ctx context.Context) (*seal.Keyring, error) {
	all := new(seal.Keyring)
	for i, file := range k.files {
		raw, err := file.Read()
		if err != nil {
			return nil, err
		}
		l := &k.last[i]
		again := l.err != nil && time.Since(l.at) >= unwrapEvery
		if again || l.at.IsZero() || !bytes.Equal(raw, l.raw) {
			ring, err := file.Decode(ctx, raw)
			*l = decoded{raw, ring, err, time.Now()}
		}
		if l.err != nil {
			return nil, l.err
		}
		all = all.With(l.ring)
	}
	return all, nil
}

// announce tells the other workers which keys this process has.
func (p *Resources) announce(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	w := stream.Worker{ID: nuid.Next(), Host: host, NoLogins: !p.Keys.TakesLogins()}
	return p.Engine.Announce(ctx, w, p.Keys.IDs, p.Keys.changed, func(err error) {
		p.log.Warn("renewd keys promote will not know of this worker", "error", err)
	})
}
