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
)

// workerKey starts the key of each worker in BucketProviders: a provider's id has no dot.
const workerKey = "worker."

const (
	// workerBeat is how often a worker says that it is there.
	workerBeat = 30 * time.Second
	// workerGone is how long after its last word a worker counts as gone, and workerForgotten how
	// long after it the word is removed.
	workerGone, workerForgotten = 4 * workerBeat, time.Hour
)

// Worker is what a running renewd says of itself.
type Worker struct {
	ID   string   `json:"id"`   // random, of this run
	Host string   `json:"host"` // where it runs
	Keys []string `json:"keys"` // ids of the keys that it can open with
	// Seals are the ids of those that it seals with, one of each kind. A worker of a version that
	// does not say has none.
	Seals []string `json:"seals,omitempty"`
	// SeenAt is when it last said so, by the NATS server's clock.
	SeenAt time.Time `json:"seen_at"`
}

// Announce says what keys returns now, again whenever changed is received from, and every half
// minute, until ctx ends; then it takes the word back. What cannot be said is said the next time:
// its error is for told.
func (e *Engine) Announce(
	ctx context.Context, id, host string, keys func() (opens, seals []string),
	changed <-chan struct{}, told func(error),
) error {
	beat := time.NewTicker(workerBeat)
	defer beat.Stop()
	for {
		w := Worker{ID: id, Host: host, SeenAt: e.Now().UTC()}
		w.Keys, w.Seals = keys()
		if err := e.announce(ctx, w); err != nil && ctx.Err() == nil {
			told(err)
		}
		select {
		case <-ctx.Done():
			return e.leave(ctx, id)
		case <-changed:
		case <-beat.C:
		}
	}
}

func (e *Engine) announce(ctx context.Context, w Worker) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	kv, err := e.workers(ctx)
	if err != nil {
		return err
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

// leave removes a worker's word; one that cannot be removed is forgotten in time.
func (e *Engine) leave(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ackTimeout)
	defer cancel()
	if kv, err := e.workers(ctx); err == nil {
		_ = kv.Purge(ctx, workerKey+id)
	}
	return nil
}

func (e *Engine) workers(ctx context.Context) (jetstream.KeyValue, error) {
	bucket := e.config.Subjects.Name(BucketProviders)
	kv, err := e.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("workers: bucket %s: %w", bucket, err)
	}
	return kv, nil
}

// Workers lists the workers that were heard of in the last two minutes, by host. One of a version
// that says nothing is not among them.
func (e *Engine) Workers(ctx context.Context) ([]Worker, error) {
	kv, err := e.workers(ctx)
	if err != nil {
		return nil, err
	}
	names, err := kv.ListKeysFiltered(ctx, workerKey+"*")
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	var all []Worker
	for name := range names.Keys() {
		entry, err := kv.Get(ctx, name)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			continue // it has left
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
	slices.SortFunc(all, func(a, b Worker) int { return cmp.Or(cmp.Compare(a.Host, b.Host), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}
