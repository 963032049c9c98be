package guard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// BudgetConfig is what a Budget stands on. All of it is required.
type BudgetConfig struct {
	Provider string
	Rate     float64 // calls a second over all workers
	Bucket   jetstream.KeyValue
	Now      func() time.Time // the server's clock, so that all workers have the same
}

// Budget spends one provider's calls a second, over all workers. It is safe for concurrent use.
//
// The record has the time of the next call that nobody has a permit for (the theoretical arrival
// time of GCRA). Who wants permits moves it forward by their number, and so has the calls in
// between, each at its own time: there are no two calls of a provider in less than 1/rate, whoever
// makes them. A worker takes as many as wait for one at the time, and what it has used in the last
// tenth of a second on top. It gives none back: a worker that dies loses its batch.
type Budget struct {
	BudgetConfig
	turn  chan struct{} // held by the one who takes permits; guards the rest
	want  chan struct{} // as long as many wait
	slots []time.Time   // taken and not used
	spent []time.Time   // when the last permits were used, no older than a tenth of a second
}

// waitersMost is more than can wait: a worker has at most as many handlers as a provider's
// concurrency may be, and as many logins.
const waitersMost = 1 << 15

// NewBudget returns nil if rate is 0: no limit.
func NewBudget(c BudgetConfig) *Budget {
	if c.Rate <= 0 {
		return nil
	}
	return &Budget{BudgetConfig: c, turn: make(chan struct{}, 1), want: make(chan struct{}, waitersMost)}
}

// budgetRecord is a provider's budget as stored.
type budgetRecord struct {
	V    int       `json:"v"`
	Next time.Time `json:"next"` // the first call that is free
	Rate float64   `json:"rate"` // it was reckoned with
}

// slotLife is how long after its time a permit may be used: a worker that stalled must not make up
// for it.
const slotLife = time.Second

// Wait returns when one more call may be made, or the error of ctx. While the record cannot be
// reached it waits: what the call brings could not be saved either.
func (b *Budget) Wait(ctx context.Context) error {
	at, err := b.take(ctx)
	if err != nil {
		return fmt.Errorf("wait for a call to %s: %w", b.Provider, err)
	}
	timer := time.NewTimer(at.Sub(b.Now()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a call to %s: %w", b.Provider, context.Cause(ctx))
	}
}

// take returns the time of a call that is this caller's alone.
func (b *Budget) take(ctx context.Context) (time.Time, error) {
	select {
	case b.want <- struct{}{}:
		defer func() { <-b.want }()
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return time.Time{}, context.Cause(ctx)
	}
	for {
		now := b.Now()
		for len(b.slots) > 0 {
			at := b.slots[0]
			if b.slots = b.slots[1:]; now.Sub(at) <= slotLife {
				b.spent = append(b.spent, now)
				return at, nil
			}
		}
		if err := b.lease(ctx, now); err != nil {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return time.Time{}, errors.Join(context.Cause(ctx), err)
			}
		}
	}
}

// lease takes permits for those who wait, no more than fit into a second.
func (b *Budget) lease(ctx context.Context, now time.Time) error {
	for len(b.spent) > 0 && now.Sub(b.spent[0]) > 100*time.Millisecond {
		b.spent = b.spent[1:]
	}
	n := max(1, min(len(b.want)+len(b.spent), int(math.Ceil(b.Rate))))
	key := b.Provider + "_rate" // a provider's id has no underscore, so it is none of them
	var r budgetRecord
	var rev uint64
	entry, err := b.Bucket.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
	case err != nil:
		return fmt.Errorf("read the budget of %s: %w", b.Provider, err)
	default:
		rev = entry.Revision()
		if err := json.Unmarshal(entry.Value(), &r); err != nil || r.V > 1 {
			return unreadable(b.Bucket, key, fmt.Errorf("version %d: %w", r.V, err))
		}
	}
	first, next := r.spend(n, b.Rate, now)
	if err := put(ctx, b.Bucket, key, next, rev); conflict(err) {
		return nil // another worker was faster: look again
	} else if err != nil {
		return fmt.Errorf("write the budget of %s: %w", b.Provider, err)
	}
	for i := range n {
		b.slots = append(b.slots, first.Add(gap(i, b.Rate)))
	}
	return nil
}

// spend is the record after n permits were taken, and the time of the first of them. What was
// reckoned by another rate, or lies further ahead than callers can wait, was reckoned by other
// settings or another clock.
func (r budgetRecord) spend(n int, rate float64, now time.Time) (first time.Time, next budgetRecord) {
	first = later(now, r.Next)
	if r.Rate != rate && first.After(now.Add(time.Second)) || first.After(now.Add(time.Hour)) {
		first = now.Add(time.Second)
	}
	return first.UTC(), budgetRecord{V: 1, Next: first.Add(gap(n, rate)).UTC(), Rate: rate}
}

// gap is the time that n calls take up.
func gap(n int, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}
