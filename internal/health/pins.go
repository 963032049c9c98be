package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// Pins are the hosts named by the discovery document of a provider, kept for all workers and beyond
// a restart. An attacker who can change the document must not get tokens by waiting for a restart.
// Pins are of one issuer. For another issuer, which only the settings can bring, nothing is pinned.
// Safe for concurrent use.
type Pins struct {
	Provider string
	Issuer   string
	// Open opens the bucket of the providers' health.
	Open func(context.Context) (jetstream.KeyValue, error)
	// Look: keep nothing.
	Look bool
}

// pinsRecord is a provider's pins as stored.
type pinsRecord struct {
	V      int      `json:"v"`
	Issuer string   `json:"issuer"`
	Hosts  []string `json:"hosts"` // host:port
}

// key is where the pins are: a provider's id has no underscore, so no id is this key.
func (p Pins) key() string { return p.Provider + "_hosts" }

// Pinned returns the hosts, nil if no hosts were pinned. ErrRecord if this version cannot read the
// record.
func (p Pins) Pinned(ctx context.Context) ([]string, error) {
	_, r, _, err := p.load(ctx)
	if err != nil || r.Issuer != p.Issuer {
		return nil, err
	}
	return r.Hosts, nil
}

func (p Pins) load(
	ctx context.Context,
) (bucket jetstream.KeyValue, r pinsRecord, rev uint64, err error) {
	if bucket, err = p.Open(ctx); err != nil {
		return nil, r, 0, fmt.Errorf("read the hosts of %s: %w", p.Provider, err)
	}
	entry, err := bucket.Get(ctx, p.key())
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return bucket, r, 0, nil
	}
	if err != nil {
		return nil, r, 0, fmt.Errorf("read the hosts of %s: %w", p.Provider, err)
	}
	if err := json.Unmarshal(entry.Value(), &r); err != nil || r.V > 1 {
		return nil, r, 0, unreadable(bucket, p.key(), fmt.Errorf("version %d: %w", r.V, err))
	}
	return bucket, r, entry.Revision(), nil
}

// Pin keeps hosts, unless other hosts of the same issuer are kept already, and returns the hosts
// kept then.
func (p Pins) Pin(ctx context.Context, hosts []string) ([]string, error) {
	if p.Look {
		return hosts, nil
	}
	return p.keep(ctx, hosts, func(r pinsRecord) bool { return r.Issuer != p.Issuer })
}

// Replace keeps hosts in place of any other hosts: an operator has accepted them.
func (p Pins) Replace(ctx context.Context, hosts []string) error {
	_, err := p.keep(ctx, hosts, func(pinsRecord) bool { return true })
	return err
}

// keep stores hosts if the record is to be replaced, and returns the hosts stored then.
func (p Pins) keep(
	ctx context.Context, hosts []string, replaced func(pinsRecord) bool,
) ([]string, error) {
	for {
		bucket, r, rev, err := p.load(ctx)
		if err != nil {
			return nil, err
		}
		if rev != 0 && !replaced(r) {
			return r.Hosts, nil
		}
		switch err := put(
			ctx, bucket, p.key(), pinsRecord{V: 1, Issuer: p.Issuer, Hosts: hosts}, rev,
		); {
		case err == nil:
			return hosts, nil
		case !conflict(err):
			return nil, fmt.Errorf("keep the hosts of %s: %w", p.Provider, err)
		}
	}
}
