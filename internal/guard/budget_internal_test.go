package guard

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Three workers with ten handlers each take 600 permits as fast as they can. Whoever takes them, no
// two are nearer to each other than the rate says, so that in any time there are no more than the
// rate times that time, and one.
func TestTheRateHoldsOverAllWorkers(t *testing.T) {
	s := newSite(t)
	const rate, workers, handlers, each = 500, 3, 10, 20
	var mu sync.Mutex
	var slots []time.Time
	var group sync.WaitGroup
	for range workers {
		b := NewBudget(BudgetConfig{Provider: "p", Rate: rate, Bucket: s.bucket, Now: s.now})
		for range handlers {
			group.Go(func() {
				for range each {
					at, err := b.take(t.Context())
					if err != nil {
						t.Error(err)
						return
					}
					s.advance(time.Millisecond)
					mu.Lock()
					slots = append(slots, at)
					mu.Unlock()
				}
			})
		}
	}
	group.Wait()
	slices.SortFunc(slots, time.Time.Compare)
	if len(slots) != workers*handlers*each {
		t.Fatalf("%d permits", len(slots))
	}
	for i := 1; i < len(slots); i++ {
		if got := slots[i].Sub(slots[i-1]); got < gap(1, rate)-time.Microsecond {
			t.Fatalf("call %d comes %v after the one before", i, got)
		}
	}
	entry, err := s.bucket.Get(t.Context(), "p_rate")
	if err != nil {
		t.Fatal(err)
	}
	if n := entry.Revision(); n > 300 {
		t.Errorf("%d writes for 600 permits: they are not taken in batches", n)
	}
}

// What a stalled worker has not used in its second is lost, and not made up for.
func TestPermitsAreNotSavedUp(t *testing.T) {
	s := newSite(t)
	b := NewBudget(BudgetConfig{Provider: "p", Rate: 100, Bucket: s.bucket, Now: s.now})
	for range 50 {
		if _, err := b.take(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	s.advance(time.Hour)
	var first, last time.Time
	for i := range 50 {
		at, err := b.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if last = at; i == 0 {
			first = at
		}
	}
	if first.Before(s.now()) || last.Sub(first) < gap(49, 100)-time.Microsecond {
		t.Errorf("50 calls from %v to %v", first, last)
	}
}

func TestAChangedRateHoldsSoon(t *testing.T) {
	noon := newSite(t).now()
	slow := budgetRecord{V: version, Next: noon.Add(time.Minute), Rate: 0.1}
	if first, _ := slow.spend(1, 100, noon); first.After(noon.Add(time.Second)) {
		t.Errorf("the rate was raised, and the next call is at %v", first)
	}
	if first, _ := slow.spend(1, 0.1, noon); !first.Equal(slow.Next) {
		t.Errorf("the same rate, and the next call is at %v", first)
	}
}

func TestNoRateIsNoBudget(t *testing.T) {
	if NewBudget(BudgetConfig{Provider: "p"}) != nil {
		t.Error("a budget without a rate")
	}
}

// away is a bucket whose server does not answer.
type away struct{ jetstream.KeyValue }

func (away) Get(context.Context, string) (jetstream.KeyValueEntry, error) { return nil, errDown }

func TestWithoutNATSTheCallWaitsAsLongAsItsContext(t *testing.T) {
	s := newSite(t)
	b := NewBudget(BudgetConfig{Provider: "p", Rate: 100, Bucket: away{s.bucket}, Now: s.now})
	ctx, cancel := context.WithCancelCause(t.Context())
	lost := errors.New("lease lost")
	cancel(lost)
	if err := b.Wait(ctx); !errors.Is(err, lost) {
		t.Errorf("it ends with %v", err)
	}
	b.Bucket = s.bucket
	if err := b.Wait(t.Context()); err != nil {
		t.Errorf("NATS is back: %v", err)
	}
}
