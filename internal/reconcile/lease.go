package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
)

// The keys of the leases in BucketProviders. A provider's id has no underscore, so no lease has the
// key of a provider.
const (
	leaseKey       = "_reconciler"
	leaseResealing = "_resealer"
)

// leaseRecord says which worker walks the store, and what the last walk found, as stored.
type leaseRecord struct {
	Holder string    `json:"holder,omitempty"`
	Until  time.Time `json:"until,omitzero"` // by the NATS server's clock, as the rest
	NextAt time.Time `json:"next_at,omitzero"`
	// Created is when the RENEWALS stream of the last walk was made.
	Created time.Time `json:"renewals_created,omitzero"`
	Last    Walk      `json:"last,omitzero"`
	// Stuck are the messages that the last walk found standing in RENEWALS though their time is
	// over, by grant and sequence: the next walk may be another worker's.
	Stuck map[string]uint64 `json:"stuck,omitempty"`
	// Old are the keys that records were to leave in the last walk, and Left how many records still
	// have such a key.
	Old  []string `json:"old,omitempty"`
	Left int      `json:"left,omitempty"`
	// Unbound is how many records the last walk left unbound.
	Unbound int `json:"unbound,omitempty"`
}

// lease is a record as this worker read or wrote it. Each change is a compare-and-swap on the key's
// revision.
type lease struct {
	leaseRecord
	kv       jetstream.KeyValue
	key      string
	lasts    time.Duration
	now      func() time.Time
	revision uint64
}

// take returns the lease of this key. The holder gets the lease, for lasts, if a walk is due and no
// other worker is walking. sooner, if not nil, says that a walk is due before its time.
func take(
	ctx context.Context, e *stream.Engine, key, holder string, lasts time.Duration,
	sooner func(leaseRecord) bool,
) (*lease, error) {
	kv, err := e.Bucket(ctx, topology.BucketProviders)
	if err != nil {
		return nil, fmt.Errorf("lease %s: %w", key, err)
	}
	l := &lease{kv: kv, key: key, lasts: lasts, now: e.Now}
	if err := l.read(ctx); err != nil {
		return nil, fmt.Errorf("lease %s: %w", key, err)
	}
	now := e.Now()
	due := !now.Before(l.NextAt) || sooner != nil && sooner(l.leaseRecord)
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

// read reads the stored record, if any.
func (l *lease) read(ctx context.Context) error {
	entry, err := l.kv.Get(ctx, l.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(entry.Value(), &l.leaseRecord); err != nil {
		return fmt.Errorf("decode it in bucket %s: %w", l.kv.Bucket(), err)
	}
	l.revision = entry.Revision()
	return nil
}

// extend keeps the lease while the walk goes on, once half of the lease is used up.
func (l *lease) extend(ctx context.Context) error {
	now := l.now()
	if l.Until.Sub(now) > l.lasts/2 {
		return nil
	}
	l.Until = now.Add(l.lasts)
	return l.write(ctx)
}

// release gives the lease back and says after what time the next walk is due.
func (l *lease) release(ctx context.Context, every time.Duration) error {
	l.Holder, l.Until, l.NextAt = "", time.Time{}, l.now().Add(every)
	return l.write(ctx)
}

func (l *lease) write(ctx context.Context) error {
	value, err := json.Marshal(l.leaseRecord)
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

// pollTurns calls turn now and every so often until ctx ends. An error goes to fail, and the next
// turn still comes.
func pollTurns(
	ctx context.Context, every time.Duration, turn func(context.Context) error, fail func(error),
) {
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
