package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// leaseKey is in BucketProviders. A provider's id has no underscore, so it is none of them.
const leaseKey = "_reconciler"

// lease says who walks the store, and what the last walk found. Each change is a compare-and-swap
// on the key's revision.
type lease struct {
	Holder string    `json:"holder,omitempty"`
	Until  time.Time `json:"until,omitzero"` // by the NATS server's clock, as the rest
	NextAt time.Time `json:"next_at,omitzero"`
	// Created is when RENEWALS was made that the last walk saw.
	Created time.Time `json:"renewals_created,omitzero"`
	Last    Walk      `json:"last"`
	// Stuck is what the last walk found that stands in RENEWALS though its time is over, by grant
	// and sequence: the next walk may be another worker's.
	Stuck map[string]uint64 `json:"stuck,omitempty"`

	kv       jetstream.KeyValue
	revision uint64
}

// take returns the lease; it is ours, for as long as Reconciler.Lease, if a walk is due and nobody
// else is at it.
func (w *walker) take(ctx context.Context) (*lease, error) {
	bucket := w.Engine.config.Subjects.Name(BucketProviders)
	kv, err := w.Engine.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("reconciler's lease: bucket %s: %w", bucket, err)
	}
	l := &lease{kv: kv}
	entry, err := kv.Get(ctx, leaseKey)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
	case err != nil:
		return nil, fmt.Errorf("reconciler's lease: %w", err)
	default:
		if err := json.Unmarshal(entry.Value(), l); err != nil {
			return nil, fmt.Errorf("reconciler's lease: decode key %s of bucket %s: %w", leaseKey, bucket, err)
		}
		l.revision = entry.Revision()
	}
	now := w.Engine.Now()
	if now.Before(l.NextAt) || l.Holder != "" && l.Holder != w.Holder && now.Before(l.Until) {
		l.Holder = ""
		return l, nil
	}
	next := *l
	next.Holder, next.Until = w.Holder, now.Add(w.Lease)
	if err := next.write(ctx); errors.Is(err, errLeaseLost) {
		l.Holder = ""
		return l, nil
	} else if err != nil {
		return nil, err
	}
	return &next, nil
}

// extend keeps the lease while the walk goes on, once half of it is used up.
func (w *walker) extend(ctx context.Context, l *lease) error {
	now := w.Engine.Now()
	if l.Until.Sub(now) > w.Lease/2 {
		return nil
	}
	l.Until = now.Add(w.Lease)
	return l.write(ctx)
}

// release lets go and says when the next walk is due.
func (w *walker) release(ctx context.Context, l *lease) error {
	l.Holder, l.Until, l.NextAt = "", time.Time{}, w.Engine.Now().Add(w.Every)
	return l.write(ctx)
}

func (l *lease) write(ctx context.Context) error {
	value, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("reconciler's lease: %w", err)
	}
	// Revision 0 is "the key must not exist".
	revision, err := l.kv.Update(ctx, leaseKey, value, l.revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return errLeaseLost
	}
	if err != nil {
		return fmt.Errorf("reconciler's lease: %w", err)
	}
	l.revision = revision
	return nil
}
