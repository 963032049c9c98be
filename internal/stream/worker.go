package stream

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/topology"
)

// workerKey starts the key of each worker in BucketProviders: a provider's id has no dot.
const workerKey = "worker."

const (
	// workerBeat is how often a worker announces itself.
	workerBeat = 30 * time.Second
	// workerGone is the silence after which a worker counts as gone, and workerForgotten the
	// silence after which its announcement is removed.
	workerGone, workerForgotten = 4 * workerBeat, time.Hour
)

// Worker is the announcement of a running renewd.
type Worker struct {
	ID   string   `json:"id"`   // random, of this run
	Host string   `json:"host"` // the worker's machine
	Keys []string `json:"keys"` // ids of the keys the worker can open with
	// Seals are the ids of the keys the worker seals with, one of each kind. Empty for a worker of
	// a version without this field.
	Seals []string `json:"seals,omitempty"`
	// NoLogins: the worker takes no logins, and has no login keys.
	NoLogins bool `json:"no_logins,omitempty"`
	// SeenAt is when the worker last announced itself, by the NATS server's clock.
	SeenAt time.Time `json:"seen_at"`
}

// Announce publishes w with the present keys, again whenever changed is received from, and every
// half minute, until ctx ends. Then Announce withdraws the announcement. A failed announcement is
// made the next time, and its error goes to told.
func (e *Engine) Announce(
	ctx context.Context, w Worker, keys func() (opens, seals []string),
	changed <-chan struct{}, told func(error),
) error {
	beat := time.NewTicker(workerBeat)
	defer beat.Stop()
	for {
		w.SeenAt = e.Now().UTC()
		w.Keys, w.Seals = keys()
		if err := e.announce(ctx, w); err != nil && ctx.Err() == nil {
			told(err)
		}
		select {
		case <-ctx.Done():
			return e.leave(ctx, w.ID)
		case <-changed:
		case <-beat.C:
		}
	}
}

func (e *Engine) announce(ctx context.Context, w Worker) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return fmt.Errorf("say which keys this worker has: %w", err)
	}
	raw, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if _, err := kv.Put(ctx, workerKey+w.ID, raw); err != nil {
		return fmt.Errorf("say which keys this worker has: %w", err)
	}
	return nil
}

// leave removes a worker's announcement. An announcement that cannot be removed is forgotten in
// time.
func (e *Engine) leave(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	if kv, err := e.Bucket(ctx, topology.BucketProviders); err == nil {
		_ = kv.Purge(ctx, workerKey+id)
	}
	return nil
}

// Workers lists the workers heard of in the last two minutes, by host. A worker of a version that
// does not announce itself is not listed.
func (e *Engine) Workers(ctx context.Context) ([]Worker, error) {
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	names, err := kv.ListKeysFiltered(ctx, workerKey+"*")
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	var all []Worker
	for name := range names.Keys() {
		entry, err := kv.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // the worker has left
		}
		if err != nil {
			return nil, fmt.Errorf("list workers: %w", err)
		}
		w := Worker{ID: strings.TrimPrefix(name, workerKey)}
		if err := json.Unmarshal(entry.Value(), &w); err != nil {
			return nil, fmt.Errorf("list workers: decode key %s of bucket %s", name, kv.Bucket())
		}
		switch silent := e.Now().Sub(w.SeenAt); {
		case silent > workerForgotten:
			_ = kv.Purge(ctx, name)
		case silent <= workerGone:
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b Worker) int {
		return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}
