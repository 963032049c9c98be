package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

// knows reports whether the keyring has the private part of a key in this key set.
func knows(ring *seal.Keyring, jwks []byte) bool {
	var set struct {
		Keys []struct {
			ID string `json:"kid"`
		} `json:"keys"`
	}
	if json.Unmarshal(jwks, &set) != nil {
		return false
	}
	for _, published := range set.Keys {
		if slices.ContainsFunc(ring.Keys(), func(k seal.KeyInfo) bool {
			return k.ID == published.ID
		}) {
			return true
		}
	}
	return len(set.Keys) == 0
}

// publishKeys puts the public key where publishers find it, and the ids of the store keys where the
// other workers look. It refuses if another keyring's keys are there, or if this keyring is from
// before a key was retired. Otherwise this process and the other workers could not open what the
// other side seals.
func (p *Resources) publishKeys(ctx context.Context) error {
	for _, id := range p.Keys.ring.Load().Sealing() {
		retired, err := p.Engine.Retired(ctx, id)
		if err != nil {
			return err
		}
		if retired {
			return settings.Mistake(fmt.Errorf("%s is an old keyring: it seals with key %s, "+
				"which was retired: take the file that the other workers have", p.Keys.files, id))
		}
	}
	if err := p.refuseForeign(ctx); err != nil {
		return err
	}
	if err := p.publishStoreKeys(ctx); err != nil || !p.Keys.TakesLogins() {
		return err
	}
	return p.Engine.PublishKeys(ctx, p.Keys.JWKS())
}

// refuseForeign looks whether the published public key is another keyring's. A worker without login
// keys cannot tell.
func (p *Resources) refuseForeign(ctx context.Context) error {
	if !p.Keys.TakesLogins() {
		return nil
	}
	there, err := p.Engine.Keys(ctx)
	if err != nil {
		return err
	}
	if there != nil && !knows(p.Keys.ring.Load(), there) {
		return settings.Mistake(fmt.Errorf("%s is not the keyring that this installation uses: "+
			"its public key in NATS is another one's: set RENEWD_KEYS_FILE%s to the right "+
			"file, or, if that is lost for good, run `renewd keys publish`",
			p.Keys.files, p.orLoginFile()))
	}
	return nil
}

// orLoginFile completes advice about the setting of a file with login keys.
func (p *Resources) orLoginFile() string {
	if p.Conf.LoginKeysFile == "" {
		return ""
	}
	return " and RENEWD_LOGIN_KEYS_FILE"
}

// publishStoreKeys refuses store keys of another installation. Login keys in a separate file do not
// tell, and a worker that takes no logins has no login keys.
func (p *Resources) publishStoreKeys(ctx context.Context) error {
	there, err := p.Engine.StoreKeys(ctx)
	if err != nil {
		return err
	}
	own := p.Keys.StoreIDs()
	if there != nil && !slices.ContainsFunc(own,
		func(id string) bool { return slices.Contains(there, id) }) {
		return settings.Mistake(fmt.Errorf("%s does not have the store keys that this "+
			"installation uses: set RENEWD_KEYS_FILE to the right file, or, "+
			"if that is lost for good, run `renewd keys publish`", p.Conf.KeysPath()))
	}
	return p.Engine.PublishStoreKeys(ctx, own)
}

// publishedEvery is how often a worker looks which public key services find in NATS.
const publishedEvery = time.Minute

// publishedKey watches the public key in NATS: an attacker who replaces the key can read all logins
// sealed from then on.
type publishedKey struct {
	foreign atomic.Bool // another keyring's key was there at the last look
	found   metric.Int64Counter
}

func (p *Resources) watchPublished(ctx context.Context) (err error) {
	p.published.found, err = p.tel.meter.Int64Counter("renewd.keys.replaced",
		metric.WithUnit("{key}"),
		metric.WithDescription("Public keys in NATS that were not this installation's, "+
			"and were put right. It must be 0."))
	if err != nil {
		return err
	}
	tick := time.NewTicker(publishedEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.lookAtPublished(ctx)
		}
	}
}

// lookAtPublished replaces the public key where it is missing or another keyring's. Any key of this
// keyring stays, since workers learn of a promotion one after the other.
func (p *Resources) lookAtPublished(ctx context.Context) {
	there, err := p.Engine.Keys(ctx)
	if err != nil {
		return // readiness tells of NATS
	}
	if there != nil && p.Keys.ring.Load().Published(there) {
		p.published.foreign.Store(false)
		return
	}
	p.published.foreign.Store(there != nil)
	p.published.found.Add(ctx, 1)
	p.log.Error("the public key in NATS was not this installation's, and is put right: "+
		"its writer can read the logins that were sealed since",
		"missing", there == nil,
		"hint", "who may write to the bucket renewd_keys? See docs/security.md; "+
			"if the keyring was replaced on purpose, stop every renewd with the old one")
	if err := p.Engine.PublishKeys(ctx, p.Keys.JWKS()); err != nil {
		p.log.Warn("the public key cannot be put right yet", "error", err)
	}
}

// askPublished is a probe.
func (p *Resources) askPublished(context.Context) error {
	if p.published.foreign.Load() {
		return errors.New("another one's public key was found in NATS within the " +
			"last minute; it is put right")
	}
	return nil
}
