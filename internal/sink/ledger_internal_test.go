package sink

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
)

// bucketOf is the bucket of sinks of a new server.
func bucketOf(t *testing.T) Bucket {
	t.Helper()
	js, want := streams.Start(t, natsd.Config{}), streams.Wanted(t, "")
	want.Sinks = []topology.Sink{{Name: "crm", InHand: 32}}
	streams.Ensure(t, js, want)
	b, err := OpenBucket(t.Context(), js, want.Subjects)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ledgerOf(t *testing.T, b Bucket) *ledger {
	t.Helper()
	l, err := openLedger(t.Context(), b, "crm")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// stored are the sequences that the bucket has of a user.
func stored(t *testing.T, b Bucket, about string) []uint64 {
	t.Helper()
	e, err := bucket.Get[waiting](t.Context(), b.kv, keyWait+"crm."+about)
	if err != nil {
		t.Fatal(err)
	}
	return e.Value.Sequences
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const alice = "propelauth.alice"

// One sequence waits once, however often it comes again while the first, which may be later than
// all others, is tried. Each that is done takes only itself away.
func TestSequencesComeAgain(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	l := ledgerOf(t, b)
	must(t, l.open(t.Context(), alice, waiting{Sequences: []uint64{50}}))
	for _, replayed := range []uint64{50, 10, 50, 10, 20, 10, 50} {
		if waits, err := l.behind(t.Context(), alice, replayed); !waits || err != nil {
			t.Fatal(replayed, waits, err)
		}
	}
	want := []uint64{50, 10, 20, 50}
	if got := stored(t, b, alice); !slices.Equal(got, want) {
		t.Fatalf("%v wait, want %v", got, want)
	}
	a, _ := l.due(time.Now())
	for i, next := range want {
		first, _ := a.first()
		more, err := l.done(t.Context(), a, first, time.Now())
		if first != next || more != (i < len(want)-1) || err != nil {
			t.Fatalf("done was %d, want %d; more: %v, %v", first, next, more, err)
		}
	}
	if got := stored(t, b, alice); len(got) > 0 {
		t.Errorf("left are %v", got)
	}
}

// A stored list without a sequence, as a release before this one could leave it, is taken away.
func TestEmptyListIsTakenAway(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	must(t, bucket.Set(t.Context(), b.kv, keyWait+"crm."+alice, waiting{}))
	l := ledgerOf(t, b)
	if a, _ := l.due(time.Now()); a != nil {
		t.Error("an account of which nothing waits is due")
	}
	e, err := bucket.Get[waiting](t.Context(), b.kv, keyWait+"crm."+alice)
	if e.Revision != 0 || err != nil {
		t.Errorf("the bucket has %+v, %v", e, err)
	}
}

// losing is a bucket that loses the answers to as many writes.
type losing struct {
	jetstream.KeyValue
	answers int
}

func (l *losing) Update(ctx context.Context, key string, value []byte, last uint64) (uint64,
	error) {
	revision, err := l.KeyValue.Update(ctx, key, value, last)
	if err == nil && l.answers > 0 {
		l.answers--
		return 0, errors.New("the answer was lost")
	}
	return revision, err
}

// A write whose answer was lost is no erasure: repeated, it does what it was to do, once, and what
// waits still waits here. An erasure takes what waits away.
func TestLostAnswerIsNoErasure(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	loses := &losing{KeyValue: b.kv}
	b.kv = loses
	l := ledgerOf(t, b)
	ctx, now := t.Context(), time.Now()
	again := func(what string, f func() error) {
		t.Helper()
		loses.answers = 1
		if f() == nil {
			t.Fatalf("%s: no answer was lost", what)
		}
		if err := f(); err != nil {
			t.Fatalf("%s, repeated: %v", what, err)
		}
	}
	again("open", func() error {
		return l.open(ctx, alice, waiting{Sequences: []uint64{5}, Tries: 1})
	})
	again("behind", func() error { _, err := l.behind(ctx, alice, 7); return err })
	a, _ := l.due(now)
	if a == nil {
		t.Fatal("what waits in the bucket is not due")
	}
	again("failed", func() error { return l.failed(ctx, a, now, now, "no") })
	if first, tries := a.first(); first != 5 || tries != 2 {
		t.Errorf("%d was tried %d times, want 5 and 2", first, tries)
	}
	again("done", func() error { _, err := l.done(ctx, a, 5, now); return err })
	if got := stored(t, b, alice); !slices.Equal(got, []uint64{7}) {
		t.Errorf("%v wait, want 7", got)
	}
	// What an unanswered write stored is not left behind when the last that is known is done.
	loses.answers = 1
	if _, err := l.behind(ctx, alice, 9); err == nil {
		t.Fatal("no answer was lost")
	}
	if more, err := l.done(ctx, a, 7, now); !more || err != nil {
		t.Errorf("more: %v, %v, want 9", more, err)
	}
	must(t, b.remove(ctx, keyWait+"crm."+alice, 1<<60))
	if waits, err := l.behind(ctx, alice, 11); waits || err != nil {
		t.Errorf("after an erasure something waits: %v", err)
	}
}

// A damaged value of one user in the bucket does not keep the user's outcomes from waiting.
func TestDamagedListIsReplaced(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	must(t, bucket.Set(t.Context(), b.kv, keyWait+"crm."+alice, "damaged"))
	l := ledgerOf(t, b)
	must(t, l.open(t.Context(), alice, waiting{Sequences: []uint64{5}}))
	if got := stored(t, b, alice); !slices.Equal(got, []uint64{5}) {
		t.Errorf("%v wait, want 5", got)
	}
}

// slow is a bucket whose writes begin and do not end before they are let go.
type slow struct {
	jetstream.KeyValue
	began, let chan struct{}
}

func (s *slow) Update(ctx context.Context, key string, value []byte, last uint64) (uint64, error) {
	s.began <- struct{}{}
	<-s.let
	return s.KeyValue.Update(ctx, key, value, last)
}

// A write to the bucket that takes long holds up neither the figures nor the other users.
func TestSlowWriteHoldsUpOneUser(t *testing.T) {
	t.Parallel()
	b := bucketOf(t)
	l := ledgerOf(t, b)
	must(t, l.open(t.Context(), alice, waiting{Sequences: []uint64{5}}))
	slows := &slow{KeyValue: b.kv, began: make(chan struct{}), let: make(chan struct{})}
	l.bucket.kv = slows
	written := make(chan error, 1)
	go func() { _, err := l.behind(t.Context(), alice, 7); written <- err }()
	testkit.Receive(t, slows.began)
	looked := make(chan int, 1)
	go func() {
		l.hurry(time.Time{})
		wait, _, _ := l.counts()
		looked <- wait
	}()
	if wait := testkit.Receive(t, looked); wait != 1 {
		t.Errorf("%d outcomes wait during the write, want the one before it", wait)
	}
	close(slows.let)
	must(t, testkit.Receive(t, written))
	if wait, _, _ := l.counts(); wait != 2 {
		t.Errorf("%d outcomes wait, want 2", wait)
	}
}
