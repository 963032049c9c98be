package api

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// logReaders is how many listeners may read from the stream at a time, and logReads how long each.
const (
	logReaders = 8
	logReads   = 30 * time.Second
)

// stored reads from the stream the outcomes after a place, up to those in memory, and returns the
// place where it stopped. A few listeners read at a time, each for logReads at most, so that a
// crowd of listeners, back after a worker's end, does not read the whole stream at once.
func (l *Log) stored(
	ctx context.Context,
	place uint64,
	filters []string,
	each func(entry) error,
) (uint64, error) {
	select {
	case l.reading <- struct{}{}:
		defer func() { <-l.reading }()
	case <-ctx.Done():
		return place, ctx.Err()
	}
	reads, cancel := context.WithTimeout(ctx, logReads)
	defer cancel()
	end := l.end()
	if place > end {
		ahead, err := l.knows(ctx, place)
		if ahead || err != nil {
			return place, err
		}
		place = 0
	}
	sources, stop, err := l.sources(reads, place+1, end, filters)
	defer stop()
	for err == nil {
		first := oldest(sources)
		if first == nil {
			return max(place, end), nil
		}
		if err := each(*first.ahead); err != nil {
			return place, err
		}
		place = first.ahead.sequence
		err = first.advance(reads, l)
	}
	if reads.Err() != nil && ctx.Err() == nil {
		return place, nil // the next listener has its turn
	}
	return place, fmt.Errorf("read %s: %w", l.stream, err)
}

// source is the outcomes that one filter lets through, up to an end.
type source struct {
	messages jetstream.MessagesContext
	end      uint64
	more     bool   // there are more, as far as the server knew
	ahead    *entry // the next outcome; nil: no outcome is left
}

// sources opens a consumer for each filter, since several filters on one consumer make the server
// look through every subject. Without filters one source has all outcomes. stop closes all
// consumers, also after an error.
func (l *Log) sources(ctx context.Context, from, end uint64, filters []string) (
	all []*source, stop func(), err error,
) {
	stop = func() {
		for _, s := range all {
			s.messages.Stop()
		}
	}
	if len(filters) == 0 {
		filters = []string{""}
	}
	for _, f := range filters {
		c := jetstream.OrderedConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
		}
		if f != "" {
			c.FilterSubjects = []string{f}
		}
		messages, pending, err := read(ctx, l.js, l.stream, c)
		if err != nil {
			return all, stop, err
		}
		s := &source{messages: messages, end: end, more: pending > 0}
		all = append(all, s)
		if err := s.advance(ctx, l); err != nil {
			return all, stop, err
		}
	}
	return all, stop, nil
}

// advance takes the next entry. A message that is no outcome is passed over.
func (s *source) advance(ctx context.Context, l *Log) error {
	for s.ahead = nil; s.more; {
		m, err := s.messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		meta, err := m.Metadata()
		if err != nil {
			continue
		}
		s.more = meta.NumPending > 0 && meta.Sequence.Stream < s.end
		if e, err := l.decode(m); err == nil && e.sequence <= s.end {
			s.ahead = &e
			return nil
		}
	}
	return nil
}

// oldest is the source whose next entry comes first; nil if no source has a next entry.
func oldest(sources []*source) (first *source) {
	for _, s := range sources {
		if s.ahead != nil && (first == nil || s.ahead.sequence < first.ahead.sequence) {
			first = s
		}
	}
	return first
}

// logBehind is how often a listener whose place this worker has not read yet looks again.
const logBehind = 250 * time.Millisecond

// knows reports whether the stream has the place, though this worker has not read so far: another
// worker told the listener the place. Then knows waits a moment. Else the stream was created again
// since.
func (l *Log) knows(ctx context.Context, place uint64) (bool, error) {
	s, err := l.js.Stream(ctx, l.stream)
	if err != nil {
		return false, fmt.Errorf("look up stream %s: %w", l.stream, err)
	}
	if place > s.CachedInfo().State.LastSeq {
		return false, nil
	}
	select {
	case <-ctx.Done():
	case <-time.After(logBehind):
	}
	return true, ctx.Err()
}

// consumerRest is longer than a reader is away between two pulls.
const consumerRest = 10 * time.Second

// read opens an ordered consumer, and returns how many messages wait for it.
func read(
	ctx context.Context, js jetstream.JetStream, stream string, c jetstream.OrderedConsumerConfig,
) (messages jetstream.MessagesContext, pending uint64, err error) {
	// A consumer left behind by a killed worker must not burden the server for minutes.
	c.InactiveThreshold = consumerRest
	consumer, err := js.OrderedConsumer(ctx, stream, c)
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", stream, err)
	}
	pending = consumer.CachedInfo().NumPending
	if messages, err = consumer.Messages(); err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", stream, err)
	}
	return messages, pending, nil
}
