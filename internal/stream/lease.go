package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// The keys of the leases in BucketProviders. A provider's id has no underscore, so they are none of
// them.
const (
	leaseKey       = "_reconciler"
	leaseResealing = "_resealer"
)

// lease says who walks the store, and what the last walk found. Each change is a compare-and-swap
// on the key's revision.
type lease struct {
	Holder string    `json:"holder,omitempty"`
	Until  time.Time `json:"until,omitzero"` // by the NATS server's clock, as the rest
	NextAt time.Time `json:"next_at,omitzero"`
	// Created is when RENEWALS was made that the last walk saw.
	Created time.Time `json:"renewals_created,omitzero"`
	Last    Walk      `json:"last,omitzero"`
	// Stuck is what the last walk found that stands in RENEWALS though its time is over, by grant
	// and sequence: the next walk may be another worker's.
	Stuck map[string]uint64 `json:"stuck,omitempty"`
	// Old are the keys that the last walk took records away from, and Left how many it left there.
	Old  []string `json:"old,omitempty"`
	Left int      `json:"left,omitempty"`

	kv       jetstream.KeyValue
	key      string
	lasts    time.Duration
	now      func() time.Time
	revision uint64
}

// take returns the lease of this key; it is the holder's, for as long as it lasts, if a walk is due
// and no other worker is at it. sooner, if not nil, says that one is due before its time.
func (e *Engine) take(
	ctx context.Context, key, holder string, lasts time.Duration, sooner func(lease) bool,
) (*lease, error) {
	bucket := e.config.Subjects.Name(BucketProviders)
	kv, err := e.js.KeyValue(ctx, bucket)
	if err != nil {
		return nil, fmt.Errorf("lease %s: bucket %s: %w", key, bucket, err)
	}
	l := &lease{kv: kv, key: key, lasts: lasts, now: e.Now}
	entry, err := kv.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
	case err != nil:
		return nil, fmt.Errorf("lease %s: %w", key, err)
	default:
		if err := json.Unmarshal(entry.Value(), l); err != nil {
			return nil, fmt.Errorf("lease %s: decode it in bucket %s: %w", key, bucket, err)
		}
		l.revision = entry.Revision()
	}
	now := e.Now()
	due := !now.Before(l.NextAt) || sooner != nil && sooner(*l)
	if !due || l.Holder != "" && l.Holder != holder && now.Before(l.Until) {
		l.Holder = ""
		return l, nil
	}
	next := *l
	next.Holder, next.Until = holder, now.Add(lasts)
	if err := next.write(ctx); errors.Is(err, errLeaseLost) {
		l.Holder = ""
		return l, nil
	} else if err != nil {
		return nil, err
	}
	return &next, nil
}

// extend keeps the lease while the walk goes on, once half of it is used up.
func (l *lease) extend(ctx context.Context) error {
	now := l.now()
	if l.Until.Sub(now) > l.lasts/2 {
		return nil
	}
	l.Until = now.Add(l.lasts)
	return l.write(ctx)
}

// release lets go and says after what time the next walk is due.
func (l *lease) release(ctx context.Context, every time.Duration) error {
	l.Holder, l.Until, l.NextAt = "", time.Time{}, l.now().Add(every)
	return l.write(ctx)
}

func (l *lease) write(ctx context.Context) error {
	value, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("lease %s: %w", l.key, err)
	}
	// Revision 0 is "the key must not exist".
	revision, err := l.kv.Update(ctx, l.key, value, l.revision)
	if errors.Is(err, jetstream.ErrKeyRevisionMismatch) {
		return errLeaseLost
	}
	if err != nil {
		return fmt.Errorf("lease %s: %w", l.key, err)
	}
	l.revision = revision
	return nil
}

var errLeaseLost = errors.New("another worker took the lease")

// pollTurns calls turn now and every so often until ctx ends. An error goes to fail, and the next turn
// comes all the same.
func pollTurns(ctx context.Context, every time.Duration, turn func(context.Context) error, fail func(error)) {
	poll := time.NewTicker(every)
	defer poll.Stop()
	for {
		if err := turn(ctx); err != nil && ctx.Err() == nil {
			fail(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}
