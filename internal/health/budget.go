package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// BudgetConfig is what a Budget stands on. All fields but Burst are required.
type BudgetConfig struct {
	// Name is the budget's: a provider's id, or a sender's name and a type of command behind
	// "sender." (a provider's id has no dot).
	Name   string
	Rate   float64 // calls a second over all workers
	Bucket jetstream.KeyValue
	Now    func() time.Time // the server's clock, so all workers have the same
	// Burst is how many calls may be made at once, over all workers. Default 1.
	Burst int
}

// Budget spends so many calls a second of one provider, or commands of one sender, over all
// workers. A Budget is safe for concurrent use.
//
// The record has the time of the next free call (the theoretical arrival time of GCRA). A worker
// that wants permits moves this time forward by their number. The calls in between are then the
// worker's own, each at its own time, so two calls of a provider are never less than 1/rate apart,
// even from different workers. With a burst each call has its time earlier by the time that the
// burst takes up. A worker takes as many permits as callers are waiting, and on top as many as it
// has used in the last tenth of a second. No permit is given back: a worker that dies loses its
// batch.
type Budget struct {
	BudgetConfig
	turn  chan struct{} // held by a caller that takes permits; guards the rest
	want  chan struct{} // its length is how many callers wait
	slots []slot        // taken and not used
	spent []time.Time   // when the last permits were used, no older than a tenth of a second
	none  time.Time     // until then no permit is free; of Take alone
	down  failure       // of Take alone
}

// slot is a permit for a call from at on, until it is too late.
type slot struct{ at, until time.Time }

// failure is why the record could not be reached, and until when Take does not ask again.
type failure struct {
	err   error
	until time.Time
}

// waitersMost is more than can wait: a worker has at most as many handlers as a provider's
// concurrency may be, and as many logins.
const waitersMost = 1 << 15

// NewBudget returns nil if rate is 0: no limit.
func NewBudget(c BudgetConfig) *Budget {
	if c.Rate <= 0 {
		return nil
	}
	c.Burst = max(1, c.Burst)
	return &Budget{
		BudgetConfig: c,
		turn:         make(chan struct{}, 1),
		want:         make(chan struct{}, waitersMost),
	}
}

// budgetRecord is a budget as stored.
type budgetRecord struct {
	V    int       `json:"v"`
	Next time.Time `json:"next"` // the first free call, but for the burst
	Rate float64   `json:"rate"` // that Next was reckoned with
	// Burst that Next was reckoned with, if more than 1.
	Burst int `json:"burst,omitempty"`
}

// slotLife is how long after its time a permit may be used: a worker that stalled must not make up
// for the lost calls.
const slotLife = time.Second

// Wait returns when one more call may be made, or the error of ctx. While the record cannot be
// reached Wait keeps waiting: the result of the call could not be saved either.
func (b *Budget) Wait(ctx context.Context) error {
	at, err := b.take(ctx)
	if err != nil {
		return fmt.Errorf("wait for a call to %s: %w", b.Name, err)
	}
	timer := time.NewTimer(at.Sub(b.Now()))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for a call to %s: %w", b.Name, context.Cause(ctx))
	}
}

// take returns the time of a call that no other caller has.
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
		if s, ok := b.next(now); ok {
			b.slots = b.slots[1:]
			b.spent = append(b.spent, now)
			return s.at, nil
		}
		if err := b.lease(ctx, now, b.most); err != nil {
			select {
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
				return time.Time{}, errors.Join(context.Cause(ctx), err)
			}
		}
	}
}

// next is the first permit that is not too late. The permit stays among the slots.
func (b *Budget) next(now time.Time) (slot, bool) {
	for len(b.slots) > 0 && now.After(b.slots[0].until) {
		b.slots = b.slots[1:]
	}
	if len(b.slots) == 0 {
		return slot{}, false
	}
	return b.slots[0], true
}

const (
	// askLimit is how long Take asks for permits. askAgain is how long after a failure Take does
	// not ask.
	askLimit = 500 * time.Millisecond
	askAgain = time.Second
)

// Take reports whether one more call may be made now, and does not wait until it may. An error
// means that the record cannot be reached, so nothing is known.
func (b *Budget) Take(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return false, fmt.Errorf("take a permit of %s: %w", b.Name, context.Cause(ctx))
	}
	for {
		now := b.Now()
		if s, ok := b.next(now); ok && !s.at.After(now) {
			b.slots = b.slots[1:]
			b.spent = append(b.spent, now)
			return true, nil
		}
		switch {
		case now.Before(b.none):
			return false, nil
		case now.Before(b.down.until):
			return false, b.down.err
		}
		if err := b.lease(ctx, now, b.free); err != nil {
			b.down = failure{fmt.Errorf("take a permit of %s: %w", b.Name, err), now.Add(askAgain)}
		}
	}
}

// most is how many permits are taken for waiting callers: no more than fit into a second.
func (b *Budget) most(budgetRecord, time.Time) int {
	return max(1, min(len(b.want)+len(b.spent), int(math.Ceil(b.Rate))))
}

// free is how many of the permits usable now are taken, for a caller that does not wait. If there
// is no such permit, free notes until when.
func (b *Budget) free(r budgetRecord, now time.Time) int {
	first, _ := r.spend(0, b.Rate, b.Burst, now)
	if first.After(now) {
		b.none = first
		return 0
	}
	have := 1 + int(now.Sub(first).Seconds()*b.Rate)
	return min(have, 1+len(b.spent))
}

// lease takes as many permits as the record and the time allow.
func (b *Budget) lease(
	ctx context.Context, now time.Time, allowed func(budgetRecord, time.Time) int,
) error {
	for len(b.spent) > 0 && now.Sub(b.spent[0]) > 100*time.Millisecond {
		b.spent = b.spent[1:]
	}
	key := b.Name + "_rate" // a provider's id has no underscore, so no id is this key
	var r budgetRecord
	var rev uint64
	entry, err := b.Bucket.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
	case err != nil:
		return fmt.Errorf("read the budget of %s: %w", b.Name, err)
	default:
		rev = entry.Revision()
		if err := json.Unmarshal(entry.Value(), &r); err != nil || r.V > 1 {
			return unreadable(b.Bucket, key, fmt.Errorf("version %d: %w", r.V, err))
		}
	}
	n := allowed(r, now)
	if n == 0 {
		return nil
	}
	first, next := r.spend(n, b.Rate, b.Burst, now)
	if err := put(ctx, b.Bucket, key, next, rev); conflict(err) {
		return nil // another worker was faster: look again
	} else if err != nil {
		return fmt.Errorf("write the budget of %s: %w", b.Name, err)
	}
	for i := range n {
		at := first.Add(gap(i, b.Rate))
		b.slots = append(b.slots, slot{at, later(at, now).Add(slotLife)})
	}
	return nil
}

// spend is the record after n permits were taken, and the time of the first of them. A record made
// with another rate or burst, or with a time further ahead than callers can wait, comes from other
// settings or another clock. The next call is then a second away at most.
func (r budgetRecord) spend(
	n int, rate float64, burst int, now time.Time,
) (first time.Time, next budgetRecord) {
	at, ahead := later(now, r.Next), gap(burst-1, rate)
	other := r.Rate != rate || max(1, r.Burst) != burst
	if other && at.After(now.Add(time.Second)) || at.After(now.Add(ahead+time.Hour)) {
		at = now.Add(time.Second)
	}
	next = budgetRecord{V: 1, Next: at.Add(gap(n, rate)).UTC(), Rate: rate}
	if burst > 1 {
		next.Burst = burst
	}
	return at.Add(-ahead).UTC(), next
}

// gap is the time that n calls take up.
func gap(n int, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}
