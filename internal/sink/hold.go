package sink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
)

// figures are the known state of a sink while this process runs the sink. figures are safe for
// concurrent use.
type figures struct {
	ledger  *ledger
	breaker *breaker
	line    atomic.Pointer[line]

	mu     sync.Mutex
	status Status
	floor  uint64
	queued uint64 // in the stream, and not taken yet
}

func (f *figures) delivered(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.DeliveredAt = now.UTC()
}

func (f *figures) failed(now time.Time, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Error, f.status.ErrorAt = why, now.UTC()
}

func (f *figures) looked(i *jetstream.ConsumerInfo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.floor, f.queued = i.AckFloor.Stream, i.NumPending
}

// stale is how old a status may be that says that the target is down. After a longer time without a
// try the target may have worked meanwhile, and the sink must not be disabled for the old fault.
const stale = 10 * time.Minute

// restore has the target down since the time that the process before reported, if the report is
// recent.
func (f *figures) restore(now time.Time) {
	if down := f.status.DownSince; !down.IsZero() && now.Sub(f.status.At) < stale {
		f.breaker.downSince(down, f.status.Error)
	}
}

// statusEvery is how often a process reports how its sink stands.
const statusEvery = 5 * time.Second

// hold runs the sink until ctx ends: delivers while the state allows, and obeys operators' orders.
// The end of ctx lets deliveries drain, and the end of lease cuts them off.
func (s *Sink) hold(ctx, lease context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	l, err := openLedger(ctx, s.bucket, s.Name)
	if err != nil {
		return err
	}
	f := &figures{ledger: l, breaker: newBreaker()}
	before, err := bucket.Get[Status](ctx, s.bucket.kv, keyStatus+s.Name)
	if err != nil {
		s.Logger.Warn("the sink's last status cannot be read", "error", err)
	}
	f.status = before.Value
	f.restore(s.Now())
	w, err := s.bucket.kv.WatchFiltered(ctx, []string{keyState + s.Name, keyOrder + s.Name +
		".>"}, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", s.bucket.kv.Bucket(), err)
	}
	defer func() { _ = w.Stop() }() // the connection may be gone
	s.status.Store(f)
	defer s.status.Store(nil)
	h := &holder{Sink: s, figures: f, lease: lease, stop: func() {}}
	defer h.end()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	known := false // whether the state is
	// After a standstill the clock says that the lease is over before ctx does.
	for ctx.Err() == nil && lease.Err() == nil {
		if known && !h.state.stopped() && h.run == nil {
			if err := h.begin(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
			h.retryOrders(ctx)
			h.report(ctx)
		case u, open := <-w.Updates():
			switch {
			case !open:
				return errors.New("the watch on the bucket of sinks ended")
			case u == nil:
				known = true // all stored keys have come
			default:
				h.heed(ctx, u)
			}
		}
	}
	h.end()
	h.report(lease)
	return nil
}

// holder is the process's hold on a sink. A holder is for one goroutine.
type holder struct {
	*Sink
	figures *figures
	lease   context.Context
	state   State
	run     *run // nil: nothing is delivered
	stop    context.CancelFunc
	place   position                  // as stored last
	failed  []jetstream.KeyValueEntry // orders that could not be done yet
}

func (h *holder) begin(ctx context.Context) error {
	c, err := h.JetStream.Consumer(ctx, h.Stream, h.Durable.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		if err = h.make(ctx); err == nil {
			c, err = h.JetStream.Consumer(ctx, h.Stream, h.Durable.Durable)
		}
	}
	if err != nil {
		return fmt.Errorf("durable %s: %w", h.Durable.Durable, err)
	}
	h.figures.looked(c.CachedInfo())
	h.run, h.stop, err = h.Sink.begin(ctx, h.lease, h.figures, c.CachedInfo())
	return err
}

// end stops deliveries, and waits for the deliveries under way.
func (h *holder) end() {
	if h.run == nil {
		return
	}
	h.stop()
	<-h.run.over
	h.run = nil
	h.figures.line.Store(nil)
}

// heed applies a state or an order that an operator, or the sink itself, wrote into the bucket.
func (h *holder) heed(ctx context.Context, u jetstream.KeyValueEntry) {
	if u.Key() == keyState+h.Name {
		var state State
		if err := json.Unmarshal(u.Value(), &state); err != nil {
			h.Logger.Error("the sink's state cannot be read: it stays as it was", "error", err)
			return
		}
		was := h.state
		if h.state = state; state.stopped() {
			h.end()
		} else if was.stopped() {
			h.figures.ledger.hurry(time.Time{})
			h.figures.breaker.reset()
		}
		return
	}
	if err := h.obey(ctx, u); err != nil {
		h.Logger.Error("what an operator ordered could not be done, trying again", "error", err)
		h.failed = append(h.failed, u)
	}
}

// retryOrders tries the failed orders again. When the process stops, the orders left are for the
// next process that runs the sink.
func (h *holder) retryOrders(ctx context.Context) {
	left := h.failed[:0]
	for _, u := range h.failed {
		if err := h.obey(ctx, u); err != nil {
			left = append(left, u)
		}
	}
	h.failed = left
}

// obey carries out an operator's order, and takes the order away. An unreadable order, which no
// process can carry out, is taken away too.
func (h *holder) obey(ctx context.Context, u jetstream.KeyValueEntry) (err error) {
	var o order
	switch broken := json.Unmarshal(u.Value(), &o); {
	case broken != nil:
		h.Logger.Error("an operator's order cannot be read", "error", broken)
	case o.Retry:
		err = h.figures.ledger.revive(ctx, o.About, h.Now())
	case !o.Replay.IsZero():
		h.end()
		err = h.rewind(ctx, o.Replay)
	}
	if err != nil {
		return err
	}
	return h.bucket.remove(ctx, u.Key(), u.Revision())
}

// rewind has the durable begin again at since. A durable that has not come as far as since stays
// where it is.
func (h *holder) rewind(ctx context.Context, since time.Time) error {
	c, err := h.JetStream.Consumer(ctx, h.Stream, h.Durable.Durable)
	if err != nil {
		return err
	}
	floor := c.CachedInfo().AckFloor.Stream
	stream, err := h.JetStream.Stream(ctx, h.Stream)
	if err != nil {
		return err
	}
	again := h.Durable
	again.Durable = ""
	again.DeliverPolicy, again.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	again.InactiveThreshold, again.MemoryStorage = time.Minute, true
	// The server finds the place for that time; a throw-away consumer reads the place off.
	probe, err := stream.CreateConsumer(ctx, again)
	if err != nil {
		return err
	}
	first := probe.CachedInfo().Delivered.Stream + 1
	if err := stream.DeleteConsumer(ctx, probe.CachedInfo().Name); err != nil {
		h.Logger.Warn("a consumer stays for a minute", "error", err)
	}
	if first > floor {
		return nil // all outcomes since then are still to come
	}
	at, err := bucket.Get[position](ctx, h.bucket.kv, keyPlace+h.Name)
	if err != nil {
		return err
	}
	at.Value = position{Sequence: first - 1, Stream: stream.CachedInfo().Created}
	if err := bucket.Put(ctx, h.bucket.kv, &at); err != nil {
		return err
	}
	h.place = at.Value
	if err := stream.DeleteConsumer(ctx, h.Durable.Durable); err != nil {
		return err
	}
	return h.make(ctx)
}

// report stores how the sink stands, and its place.
func (h *holder) report(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	c, err := h.JetStream.Consumer(ctx, h.Stream, h.Durable.Durable)
	if err != nil {
		return // the runner makes the durable, and logs the fact
	}
	h.figures.looked(c.CachedInfo())
	status := h.figures.now(ctx, h.oldestQueued)
	status.At, status.Host = h.Now().UTC(), h.Host
	err = bucket.Set(ctx, h.bucket.kv, keyStatus+h.Name, status)
	stream, serr := h.JetStream.Stream(ctx, h.Stream)
	if serr == nil && h.run != nil {
		p := position{Sequence: c.CachedInfo().AckFloor.Stream, Stream: stream.CachedInfo().Created}
		if p != h.place {
			serr, h.place = bucket.Set(ctx, h.bucket.kv, keyPlace+h.Name, p), p
		}
	}
	if err = errors.Join(err, serr); err != nil {
		h.Logger.Debug("the sink's status could not be stored", "error", err)
	}
}

// now is the status at this moment.
func (f *figures) now(ctx context.Context, queued func(context.Context, uint64) time.Time) Status {
	_, _, oldest := f.ledger.counts()
	down, why := f.breaker.down()
	if l := f.line.Load(); l != nil {
		oldest = earlier(oldest, l.oldest())
	}
	f.mu.Lock()
	floor, waits := f.floor, f.queued
	f.mu.Unlock()
	if oldest.IsZero() && waits > 0 {
		oldest = queued(ctx, floor)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.DownSince, f.status.Oldest = down.UTC(), oldest.UTC()
	if down.IsZero() {
		f.status.DownSince = time.Time{}
	} else {
		f.status.Error = why
	}
	if oldest.IsZero() {
		f.status.Oldest = time.Time{}
	}
	return f.status
}

// oldestQueued is when the first outcome for this sink after floor was stored.
func (h *holder) oldestQueued(ctx context.Context, floor uint64) (at time.Time) {
	stream, err := h.JetStream.Stream(ctx, h.Stream)
	if err != nil {
		return at
	}
	filters := h.Durable.FilterSubjects
	if len(filters) == 0 {
		filters = []string{">"}
	}
	for _, filter := range filters {
		m, err := stream.GetMsg(ctx, floor+1, jetstream.WithGetMsgSubject(filter))
		if err == nil {
			at = earlier(at, m.Time)
		}
	}
	return at
}
