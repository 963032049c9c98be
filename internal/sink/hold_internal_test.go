package sink

import (
	"log/slog"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/bucket"
)

// An order that fails is tried again, and is gone once it is done.
func TestFailedOrderIsTriedAgain(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	loses := &losing{KeyValue: b.kv}
	b.kv = loses
	l := ledgerOf(t, b)
	must(t, l.bury(t.Context(), alice, Letter{Sequence: 5, At: time.Now()}))
	key := keyOrder + "crm.1"
	must(t, bucket.Set(t.Context(), b.kv, key, order{Retry: true}))
	ordered, err := b.kv.Get(t.Context(), key)
	must(t, err)
	s := &Sink{Config: Config{
		Name: "crm", Logger: slog.New(slog.DiscardHandler), Now: time.Now,
	}, bucket: b}
	h := &holder{Sink: s, figures: &figures{ledger: l, breaker: newBreaker()}, stop: func() {}}
	loses.answers = 1
	h.heed(t.Context(), ordered)
	if n := len(h.failed); n != 1 {
		t.Fatalf("%d orders are kept, want the one that failed", n)
	}
	h.retryOrders(t.Context())
	left, err := bucket.Get[order](t.Context(), b.kv, key)
	_, dead, _ := l.counts()
	if err != nil || left.Revision != 0 || len(h.failed) > 0 || dead > 0 {
		t.Errorf("left are the order %+v, %v, and %d dead letters", left, err, dead)
	}
	if got := stored(t, b, alice); len(got) != 1 || got[0] != 5 {
		t.Errorf("%v wait, want 5", got)
	}
}

// A target that an earlier process found down is down still, unless no process has tried it since.
func TestDownIsRestored(t *testing.T) {
	now := time.Now()
	since := now.Add(-100 * time.Hour)
	for age, want := range map[time.Duration]time.Time{time.Minute: since, time.Hour: {}} {
		f := &figures{breaker: newBreaker(), status: Status{DownSince: since, At: now.Add(-age)}}
		f.restore(now)
		if got, _ := f.breaker.down(); !got.Equal(want) {
			t.Errorf("after %v it is down since %v, want %v", age, got, want)
		}
	}
}
