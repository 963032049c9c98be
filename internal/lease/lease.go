// Package lease has one process at a time do work that no two processes should do at once. The
// lease is a key of a bucket in NATS.
//
// The package owns how a lease is taken, extended, lost and given back. A lease saves work, and is
// no lock: a stalled process may go on for a moment beside the next process. A Lease is used by one
// goroutine.
package lease

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
)

const (
	// usual is how long a process that vanished keeps the work from other processes.
	usual = 15 * time.Second
	// patience is how long a request to the NATS server may take.
	patience = 4 * time.Second
)

// Record says which process has a lease, as stored.
type Record struct {
	Host  string    `json:"host,omitempty"`
	Until time.Time `json:"until"` // by the NATS server's clock
}

// Lease is the right to do a piece of work. All fields are required, but Lasts and Host.
type Lease struct {
	// Open opens the bucket. Open is called before each try.
	Open func(ctx context.Context) (jetstream.KeyValue, error)
	// Place is the key in the bucket at which the lease lies.
	Place string
	// What names the work, for the log.
	What string
	// Lasts is how long a process that vanished keeps the work from other processes. Default 15 s.
	Lasts time.Duration
	Host  string           // names this process for people
	Now   func() time.Time // the NATS server's time
	Rand  func() float64   // draws from [0, 1), for jitter
	Log   *slog.Logger
}

// ErrLost is the cause of the end of work whose lease another process has taken, or may take.
var ErrLost = errors.New("the lease is over: another process has the work, or may begin it")

// beat is how often the lease is extended, and looked for, and how long an extension may take.
func (l Lease) beat() time.Duration { return l.Lasts * 4 / 15 }

// Work does the work of the lease. ctx ends when Run's does, or the lease is lost; its cause is
// then ErrLost. held ends with the lease alone. The lease is kept until Work returns, so begun
// steps may go on until held ends, and no longer. held.Err looks at the clock: a process that
// stood still for longer than the lease lasts learns from held.Err at once that the lease is over.
type Work func(ctx, held context.Context) error

// Run calls work whenever no other process does, until ctx ends. An error of work is logged, and
// work is called again.
func (l Lease) Run(ctx context.Context, work Work) {
	l.Lasts = cmp.Or(l.Lasts, usual)
	said := false
	for ctx.Err() == nil {
		err := l.turn(ctx, work)
		switch {
		case ctx.Err() != nil:
		case err != nil && !said:
			l.Log.Warn(l.What+" cannot run for now, trying again", "error", err)
			said = true
		case err == nil:
			said = false
		}
		select {
		case <-ctx.Done():
		case <-time.After(l.beat() + time.Duration(l.Rand()*float64(l.beat())/10)):
		}
	}
}

// held is a lease as last read or written by this process.
type held struct {
	Lease
	kv     jetstream.KeyValue
	stored bucket.Entry[Record]
}

// turn does the work if the lease is free, until the lease is lost.
func (l Lease) turn(ctx context.Context, work Work) error {
	asking, done := context.WithTimeout(ctx, patience)
	defer done()
	h := &held{Lease: l}
	var err error
	if h.kv, err = l.Open(asking); err != nil {
		return err
	}
	if h.stored, err = bucket.Get[Record](asking, h.kv, l.Place); err != nil {
		return err
	}
	if l.Now().Before(h.stored.Value.Until) {
		return nil
	}
	asked := time.Now()
	if err := h.extend(asking); errors.Is(err, bucket.ErrChanged) {
		return nil // another process was faster
	} else if err != nil {
		return err
	}
	under := newTerm(ctx, asked.Add(l.Lasts))
	defer under.lose(nil)
	doing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(under, func() { stop(context.Cause(under)) })()
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		h.keep(under)
	}()
	err = work(doing, under)
	under.lose(nil)
	<-kept
	if errors.Is(context.Cause(under), ErrLost) {
		return ErrLost
	}
	release, done := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer done()
	return errors.Join(err, h.write(release, Record{}))
}

// term is the time under a lease. A term is safe for concurrent use.
type term struct {
	context.Context
	lose context.CancelCauseFunc
	ends atomic.Pointer[time.Time] // unless the lease is extended
}

func newTerm(ctx context.Context, ends time.Time) *term {
	ctx, lose := context.WithCancelCause(context.WithoutCancel(ctx))
	t := &term{Context: ctx, lose: lose}
	t.ends.Store(&ends)
	return t
}

// Err ends the term if its time is over, by one clock or the other: the monotonic clock stands
// still while a machine sleeps, and the clock on the wall may be set back.
func (t *term) Err() error {
	now, ends := time.Now(), *t.ends.Load()
	if now.After(ends) || now.Round(0).After(ends.Round(0)) {
		t.lose(ErrLost)
	}
	return t.Context.Err()
}

// keep extends the lease until the term ends. keep ends the term in good time before another
// process may take the lease.
func (h *held) keep(t *term) {
	tick := time.NewTicker(h.beat())
	defer tick.Stop()
	for {
		select {
		case <-t.Done():
			return
		case <-tick.C:
		}
		if t.Err() != nil {
			return // an extension now would keep everybody from the work
		}
		asked := time.Now()
		asking, done := context.WithTimeout(t, h.beat())
		err := h.extend(asking)
		done()
		switch ends := asked.Add(h.Lasts); {
		case err == nil:
			t.ends.Store(&ends)
		case t.Err() != nil:
			return
		case errors.Is(err, bucket.ErrChanged), time.Until(*t.ends.Load()) < h.beat():
			t.lose(ErrLost)
			return
		}
	}
}

func (h *held) extend(ctx context.Context) error {
	return h.write(ctx, Record{Host: h.Host, Until: h.Now().Add(h.Lasts)})
}

// write stores the record if no other process has since the last read.
func (h *held) write(ctx context.Context, r Record) error {
	h.stored.Value = r
	return bucket.Put(ctx, h.kv, &h.stored)
}
