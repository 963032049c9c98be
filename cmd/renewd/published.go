package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// publishedEvery is how often a worker looks which public key services find in NATS.
const publishedEvery = time.Minute

// publishedKey watches the public key in NATS: whoever replaces it can read the logins that are
// sealed from then on.
type publishedKey struct {
	foreign atomic.Bool // another one's was there at the last look
	found   metric.Int64Counter
}

func (p *plant) watchPublished(ctx context.Context) (err error) {
	if p.published.found, err = p.tel.meter.Int64Counter("renewd.keys.replaced", metric.WithUnit("{key}"),
		metric.WithDescription("Public keys in NATS that were not this installation's, and were put right. It must be 0.")); err != nil {
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

// lookAtPublished puts the public key right where it is missing or another keyring's. One of this
// keyring stays, whichever it is: workers learn of a promotion one after the other.
func (p *plant) lookAtPublished(ctx context.Context) {
	there, err := p.engine.Keys(ctx)
	if err != nil {
		return // readiness tells of NATS
	}
	if there != nil && p.keys.ring.Load().Published(there) {
		p.published.foreign.Store(false)
		return
	}
	p.published.foreign.Store(there != nil)
	p.published.found.Add(ctx, 1)
	p.log.Error("the public key in NATS was not this installation's, and is put right: whoever wrote it can read the logins that were sealed since",
		"missing", there == nil, "hint", "who may write to the bucket renewd_keys? See docs/security.md; if the keyring was replaced on purpose, stop every renewd with the old one")
	if err := p.engine.PublishKeys(ctx, p.keys.JWKS()); err != nil {
		p.log.Warn("the public key cannot be put right yet", "error", err)
	}
}

// askPublished is a probe.
func (p *plant) askPublished(context.Context) error {
	if p.published.foreign.Load() {
		return errors.New("another one's public key was found in NATS within the last minute; it is put right")
	}
	return nil
}
