package health

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Three workers with ten handlers each take 600 permits as fast as they can. Whichever worker takes
// them, no two permits are nearer to each other than the rate says. So in any time there are no
// more than the rate times that time, and one.
func TestTheRateHoldsOverAllWorkers(t *testing.T) {
	s := newSite(t)
	const rate, workers, handlers, each = 500, 3, 10, 20
	var mu sync.Mutex
	var slots []time.Time
	var group sync.WaitGroup
	for range workers {
		b := NewBudget(BudgetConfig{Name: "p", Rate: rate, Bucket: s.bucket, Now: s.now})
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
	b := NewBudget(BudgetConfig{Name: "p", Rate: 100, Bucket: s.bucket, Now: s.now})
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
	if first, _ := slow.spend(1, 100, 1, noon); first.After(noon.Add(time.Second)) {
		t.Errorf("the rate was raised, and the next call is at %v", first)
	}
	if first, _ := slow.spend(1, 0.1, 1, noon); !first.Equal(slow.Next) {
		t.Errorf("the same rate, and the next call is at %v", first)
	}
}

func TestNoRateIsNoBudget(t *testing.T) {
	if NewBudget(BudgetConfig{Name: "p"}) != nil {
		t.Error("a budget without a rate")
	}
}

// away is a bucket whose server does not answer.
type away struct{ jetstream.KeyValue }

func (away) Get(context.Context, string) (jetstream.KeyValueEntry, error) { return nil, errDown }

func TestWithoutNATSTheCallWaitsAsLongAsItsContext(t *testing.T) {
	s := newSite(t)
	b := NewBudget(BudgetConfig{Name: "p", Rate: 100, Bucket: away{s.bucket}, Now: s.now})
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

// Three workers get as many commands as they like of one sender. All together they let in the burst
// and then the rate, whichever of them is asked, and a flood costs few reads.
func TestABurstIsOfAllWorkers(t *testing.T) {
	s := newSite(t)
	counted := &counting{KeyValue: s.bucket}
	var workers []*Budget
	for range 3 {
		workers = append(workers, NewBudget(BudgetConfig{
			Name:   "sender.shop",
			Rate:   10,
			Burst:  20,
			Bucket: counted,
			Now:    s.now,
		}))
	}
	taken := func(n int) (in int) {
		t.Helper()
		for i := range n {
			ok, err := workers[i%len(workers)].Take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				in++
			}
		}
		return in
	}
	if n := taken(5000); n != 20 {
		t.Errorf("%d of a flood were let in, want the burst of 20", n)
	}
	reads := counted.reads
	if taken(5000) != 0 || counted.reads != reads || reads > 40 {
		t.Errorf("%d reads in the flood, and %d more behind it", reads, counted.reads-reads)
	}
	s.advance(time.Second)
	if n := taken(5000); n != 10 {
		t.Errorf("%d were let in a second later, want 10", n)
	}
	s.advance(time.Hour)
	if n := taken(5000); n != 20 {
		t.Errorf("%d were let in an hour later, want the burst of 20", n)
	}
}

// A worker that uses many permits takes them in batches, and no permit is used twice.
func TestAFastSenderTakesPermitsInBatches(t *testing.T) {
	s := newSite(t)
	counted := &counting{KeyValue: s.bucket}
	b := NewBudget(BudgetConfig{
		Name:   "sender.shop",
		Rate:   1000,
		Burst:  1000,
		Bucket: counted,
		Now:    s.now,
	})
	in := 0
	for range 2000 {
		if ok, err := b.Take(t.Context()); err != nil {
			t.Fatal(err)
		} else if ok {
			in++
		}
	}
	if in != 1000 || counted.reads > 30 {
		t.Errorf("%d were let in with %d reads", in, counted.reads)
	}
}

// Where the record cannot be reached Take says so at once, and asks again a second later.
func TestTakeDoesNotWaitForARecordThatIsAway(t *testing.T) {
	s := newSite(t)
	b := NewBudget(BudgetConfig{Name: "sender.shop", Rate: 10, Bucket: away{s.bucket}, Now: s.now})
	if ok, err := b.Take(t.Context()); ok || !errors.Is(err, errDown) {
		t.Errorf("%v, %v", ok, err)
	}
	b.Bucket = s.bucket
	if ok, err := b.Take(t.Context()); ok || !errors.Is(err, errDown) {
		t.Errorf("asked again at once: %v, %v", ok, err)
	}
	s.advance(askAgain)
	if ok, err := b.Take(t.Context()); !ok || err != nil {
		t.Errorf("NATS is back: %v, %v", ok, err)
	}
	if _, err := s.bucket.Put(t.Context(), "sender.crm_rate", []byte(`{"v":9}`)); err != nil {
		t.Fatal(err)
	}
	of := NewBudget(BudgetConfig{Name: "sender.crm", Rate: 10, Bucket: s.bucket, Now: s.now})
	if ok, err := of.Take(t.Context()); ok || !errors.Is(err, ErrRecord) {
		t.Errorf("a record of a later version: %v, %v", ok, err)
	}
}

// A smaller burst holds soon, and a record that was lost gives a burst.
func TestAChangedBurstHoldsSoon(t *testing.T) {
	noon := newSite(t).now()
	_, full := budgetRecord{}.spend(1000, 1, 1000, noon)
	if first, _ := full.spend(1, 1, 1000, noon); !first.After(noon) {
		t.Errorf("a permit beyond the burst at %v", first)
	}
	if first, _ := full.spend(1, 1, 10, noon); first.After(noon.Add(time.Second)) {
		t.Errorf("the burst was lowered, and the next permit is at %v", first)
	}
}

// counting counts reads of a bucket.
type counting struct {
	jetstream.KeyValue
	reads int
}

func (c *counting) Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error) {
	c.reads++
	return c.KeyValue.Get(ctx, key)
}
