package consumers

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// Query says which stored outcomes to read back. The zero value reads all.
type Query struct {
	// Prefix of the installation; usually empty.
	Prefix string
	// Since and Until bound when an event was stored, by the server's clock: Since included, Until
	// not. Zero: no bound.
	Since, Until time.Time
	// Types of events. Empty: all outcomes.
	Types []schema.Type
	// Provider and User narrow the outcomes down. Empty: all. A User needs its Provider: reading
	// one user's subjects takes milliseconds, looking for a user at every provider takes the server
	// as long as reading everything.
	Provider, User string
}

// Replay reads stored outcomes back in the order they were stored, and ends with the last outcome
// stored when the replay began. Each use of the result reads from scratch.
//
// A *schema.Malformed as the error is about a single stored message that is no event, and the
// replay goes on after the message. Any other error is the last pair: all outcomes before the error
// were read, all later outcomes are missing.
func Replay(ctx context.Context, nc *nats.Conn, q Query) iter.Seq2[schema.Event, error] {
	return func(yield func(schema.Event, error) bool) {
		if err := q.replay(ctx, nc, yield); err != nil {
			yield(schema.Event{}, fmt.Errorf("replay: %w", err))
		}
	}
}

func (q Query) check() (schema.Subjects, error) {
	subjects, err := schema.NewSubjects(q.Prefix)
	switch {
	case err != nil:
		return subjects, err
	case q.User != "" && q.Provider == "":
		return subjects, errors.New("Provider: missing, and needed with a User")
	case !q.Until.IsZero() && q.Until.Before(q.Since):
		return subjects, errors.New("Until: is before Since")
	}
	return subjects, checkFilter(q.Types, q.Provider, q.User)
}

// sources lists the filters of each consumer that a replay reads from. A replay of everything reads
// through one consumer without filters, since the server counts all matches of a filter before
// sending anything. Otherwise each type has its own consumer: several filters on one consumer make
// the server look through every subject, which takes a thousand times as long for one user.
func (q Query) sources(subjects schema.Subjects) (out [][]string) {
	if len(q.Types) == 0 && q.Provider == "" {
		return [][]string{nil}
	}
	for _, f := range filters(subjects, q.Types, q.Provider, q.User) {
		out = append(out, []string{f})
	}
	return out
}

// replay merges its sources by sequence.
func (q Query) replay(
	ctx context.Context, nc *nats.Conn, yield func(schema.Event, error) bool,
) error {
	subjects, err := q.check()
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	stream := subjects.Name(schema.StreamOutcomes)
	next, err := end(ctx, js, stream)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	var sources []*source
	for _, f := range q.sources(subjects) {
		s := &source{
			reader:  reader{js: js, stream: stream, filters: f, since: q.Since},
			end:     next,
			until:   q.Until,
			batches: make(chan batch, batchesAhead),
		}
		reading.Go(func() { s.read(ctx) })
		sources = append(sources, s)
	}
	for {
		m, err := first(ctx, sources)
		if m == nil || err != nil {
			return err
		}
		e, err := subjects.Decode(m.Header, m.Data, arrival(m))
		if !yield(e, err) {
			return nil
		}
	}
}

// first takes the oldest message of all sources; nil when all are at their end.
func first(ctx context.Context, sources []*source) (*runner.Message, error) {
	var oldest *source
	for _, s := range sources {
		if err := s.fill(ctx); err != nil {
			return nil, err
		}
		if len(s.ahead) > 0 && (oldest == nil || s.ahead[0].Sequence < oldest.ahead[0].Sequence) {
			oldest = s
		}
	}
	if oldest == nil {
		return nil, nil
	}
	m := oldest.ahead[0]
	oldest.ahead = oldest.ahead[1:]
	return m, nil
}

// source is the part of a replay that comes through one consumer. Its goroutine reads ahead while
// the caller decodes and uses the batches before.
type source struct {
	reader            // of the goroutine that reads
	end     uint64    // first sequence too new for the replay
	until   time.Time // zero: no bound
	batches chan batch

	ahead []*runner.Message // of the goroutine that takes
	over  bool
}

// batchesAhead is how many batches may wait to be taken: the server reads its disk meanwhile.
const batchesAhead = 4

// batch is the result of one read of a source.
type batch struct {
	messages []*runner.Message
	over     bool // nothing comes after this batch
	err      error
}

// fill waits for the source's next message, or its end.
func (s *source) fill(ctx context.Context) error {
	for len(s.ahead) == 0 && !s.over {
		select {
		case b := <-s.batches:
			if b.err != nil {
				return b.err
			}
			s.ahead, s.over = b.messages, b.over
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// read hands over batches until the source's end, an error, or ctx's end.
func (s *source) read(ctx context.Context) {
	defer s.close(ctx)
	for b := (batch{}); !b.over && b.err == nil && ctx.Err() == nil; {
		b = s.try(ctx)
		select {
		case s.batches <- b:
		case <-ctx.Done():
		}
	}
}

// readTries is how often a replay tries to read a batch over a lost connection.
const readTries = 6

// try reads a batch, even through lost connections.
func (s *source) try(ctx context.Context) (b batch) {
	var wait pull.Backoff
	for tries := 1; ; tries++ {
		b = s.more(ctx)
		if b.err == nil || ctx.Err() != nil || !passing(b.err) || errors.Is(b.err, errAnew) ||
			tries == readTries {
			return b
		}
		wait.Wait(ctx)
	}
}

// more reads one batch, and notices the end.
func (s *source) more(ctx context.Context) (b batch) {
	if s.puller == nil {
		if err := s.open(ctx); err != nil {
			return batch{err: err}
		}
	}
	if s.pending == 0 {
		return batch{over: true}
	}
	b.messages, b.err = s.batch(ctx)
	if b.err == nil && len(b.messages) == 0 {
		b.err = s.refresh(ctx)
	}
	for i, m := range b.messages {
		if m.Sequence >= s.end || !s.until.IsZero() && !m.Time.Before(s.until) {
			b.messages, b.over = b.messages[:i], true
			break
		}
	}
	return b
}
