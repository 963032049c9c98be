package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// entry is one outcome in the order of its stream.
type entry struct {
	sequence uint64
	event    schema.Event
}

// Log is the live end of the stream of outcomes, held in memory once for all listeners of this
// process, and only while there are listeners. A listener asks for the outcomes after its own
// place, so a slow listener costs no memory and does not delay the others. Safe for concurrent use.
type Log struct {
	js       jetstream.JetStream
	subjects schema.Subjects
	stream   string
	logger   *slog.Logger
	reading  chan struct{} // a place for each listener that reads from the stream
	done     chan struct{} // closed when Run has ended

	wanted chan struct{} // there is a first listener

	mu        sync.Mutex
	listeners int
	unfollow  context.CancelFunc // ends the reading that goes on; nil: nothing is read
	ready     chan struct{}      // closed once after and last are known
	started   bool               // after and last are known
	ring      []entry            // the newest, oldest first
	after     uint64             // the ring holds all outcomes with a higher sequence, up to last
	last      uint64             // sequence of the newest outcome
	changed   chan struct{}      // closed at the next outcome
}

// logKept is how many of the newest outcomes stay in memory. A listener further behind reads from
// the stream.
const logKept = 8192

// NewLog reads nothing until Run.
func NewLog(
	js jetstream.JetStream,
	subjects schema.Subjects,
	stream string,
	logger *slog.Logger,
) *Log {
	return &Log{
		js:       js,
		subjects: subjects,
		stream:   stream,
		logger:   logger,
		reading:  make(chan struct{}, logReaders),
		done:     make(chan struct{}),
		wanted:   make(chan struct{}, 1),
		ready:    make(chan struct{}),
		changed:  make(chan struct{}),
	}
}

// logPause is the pause before the stream is tried again.
const logPause = time.Second

// Run follows the stream while there are listeners, through cuts, until ctx ends. Call Run once.
func (l *Log) Run(ctx context.Context) {
	defer close(l.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wanted:
		}
		l.run(ctx)
	}
}

// run follows the stream until the last listener leaves.
func (l *Log) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	if l.listeners == 0 {
		l.mu.Unlock()
		return
	}
	l.unfollow = cancel
	l.mu.Unlock()
	for failed := false; ctx.Err() == nil; {
		err := l.follow(ctx)
		if err != nil && ctx.Err() == nil && !failed {
			l.logger.Warn(
				"outcomes cannot be followed; listeners over HTTP hear them once they can",
				"err",
				err,
			)
		}
		failed = err != nil
		select {
		case <-ctx.Done():
		case <-time.After(logPause):
		}
	}
}

// join is for a new listener: it returns the place after all stored outcomes, once known. Without
// an error the listener leaves later.
func (l *Log) join(ctx context.Context) (end uint64, err error) {
	l.mu.Lock()
	l.listeners++
	ready := l.ready
	l.mu.Unlock()
	select {
	case l.wanted <- struct{}{}:
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	select {
	case <-ready:
	case <-l.done:
		l.leave()
		return 0, errors.New("stopping")
	case <-ctx.Done():
		l.leave()
		return 0, fmt.Errorf("outcomes cannot be followed now: %w", ctx.Err())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, nil
}

// joinLimit is how long a listener waits for the stream.
const joinLimit = 5 * time.Second

// leave is for a listener that ends. With the last listener the reading ends, and the outcomes read
// are let go.
func (l *Log) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listeners--; l.listeners > 0 {
		return
	}
	if l.unfollow != nil {
		l.unfollow()
		l.unfollow = nil
	}
	if l.started {
		l.started, l.ready = false, make(chan struct{})
	}
	l.ring = nil
}

func (l *Log) follow(ctx context.Context) error {
	from, err := l.begin(ctx)
	if err != nil {
		return err
	}
	messages, _, err := read(ctx, l.js, l.stream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
	})
	if err != nil {
		return err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("follow %s: %w", l.stream, err)
		}
		e, err := l.decode(m)
		if err != nil {
			l.logger.Warn("a stored outcome cannot be read", "err", err)
			continue
		}
		l.append(ctx, e)
	}
}

// begin returns where to read from: the end of the stream at first, later where reading stopped. A
// stream that ends before that position was created again, and is read from its beginning.
func (l *Log) begin(ctx context.Context) (from uint64, err error) {
	s, err := l.js.Stream(ctx, l.stream)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", l.stream, err)
	}
	end := s.CachedInfo().State.LastSeq
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case ctx.Err() != nil: // the last listener has left
		return 0, ctx.Err()
	case !l.started:
		l.after, l.last, l.started = end, end, true
		close(l.ready)
	case end < l.last:
		l.ring, l.after, l.last = nil, 0, 0
	}
	return l.last + 1, nil
}

func (l *Log) decode(m jetstream.Msg) (entry, error) {
	meta, err := m.Metadata()
	if err != nil {
		return entry{}, err
	}
	e, err := l.subjects.Decode(schema.Header(m.Headers()), m.Data(), schema.Arrival{
		Subject:  m.Subject(),
		Stream:   meta.Stream,
		Sequence: meta.Sequence.Stream,
		Time:     meta.Timestamp,
	})
	return entry{meta.Sequence.Stream, e}, err
}

// append adds the newest outcome.
func (l *Log) append(ctx context.Context, e entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return // the last listener has left, and the next listener begins elsewhere
	}
	if e.event.Type == schema.UserForgotten {
		l.ring = withoutUser(l.ring, e.event)
	}
	if len(l.ring) >= 2*logKept {
		l.after = l.ring[logKept-1].sequence
		l.ring = append(make([]entry, 0, 2*logKept), l.ring[logKept:]...)
	}
	l.ring = append(l.ring, e)
	l.last = e.sequence
	close(l.changed)
	l.changed = make(chan struct{})
}

// withoutUser is the ring without the outcomes about a user from before the user's erasure. It is a
// copy, since listeners still read the old ring.
func withoutUser(ring []entry, erased schema.Event) []entry {
	kept := make([]entry, 0, 2*logKept)
	for _, e := range ring {
		if e.event.Provider != erased.Provider || e.event.User != erased.User ||
			!e.event.Time.Before(erased.Time) {
			kept = append(kept, e)
		}
	}
	return kept
}

// end is the place after all outcomes read.
func (l *Log) end() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// batch is how many outcomes a listener gets at a time.
const batch = 256

// next returns outcomes after a place, all in memory and in order, and a channel that is closed
// once there are more. behind tells that the next outcome is no longer in memory, or that the place
// is beyond the end known here: see stored.
func (l *Log) next(place uint64) (entries []entry, more <-chan struct{}, behind bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if place < l.after || place > l.last {
		return nil, l.changed, true
	}
	low, high := 0, len(l.ring)
	for low < high { // the first with a higher sequence
		mid := (low + high) / 2
		if l.ring[mid].sequence <= place {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return l.ring[low:min(low+batch, len(l.ring))], l.changed, false
}
