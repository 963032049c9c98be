package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
)

// reader reads a stream in its order, without acks and without a gap: messages lost on the way are
// read again. The reader uses a consumer in the server's memory, and close deletes the consumer.
// Not safe for concurrent use.
type reader struct {
	js      jetstream.JetStream
	stream  string
	filters []string
	next    uint64    // sequence to read from; 0: since
	since   time.Time // zero: the oldest

	created time.Time // when the stream of next was made; zero: not known yet

	puller  *pull.Puller // nil: the consumer is yet to be made
	name    string
	read    uint64 // messages read from this consumer
	pending uint64 // matching messages stored but not read, when the last message was read
}

const (
	readBatch   = 1000
	readExpires = 2 * time.Second
)

// errAnew: the stream was recreated since the last read, and the messages read are gone.
var errAnew = errors.New("the stream was created again: it is read from its beginning, " +
	"and what the old one held and was not read is missed")

// locate makes sure, once the consumer is made, that the reader's place is in the consumer's
// stream. After errAnew the reader is at the beginning of that stream.
func (r *reader) locate(ctx context.Context) error {
	s, err := r.js.Stream(ctx, r.stream)
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", r.stream, err)
	}
	i := s.CachedInfo()
	anew := !r.created.IsZero() && !r.created.Equal(i.Created) || r.next > i.State.LastSeq+1
	if r.created = i.Created; anew {
		r.next, r.since = 0, time.Time{}
		return errAnew
	}
	return nil
}

// open makes the consumer, from where the reader is.
func (r *reader) open(ctx context.Context) error {
	c := jetstream.ConsumerConfig{
		AckPolicy:         jetstream.AckNonePolicy,
		MemoryStorage:     true,
		Replicas:          1,
		InactiveThreshold: 30 * time.Second,
		DeliverPolicy:     jetstream.DeliverAllPolicy,
	}
	if len(r.filters) == 1 {
		// The filter is then part of the request's subject, where permissions can tell it.
		c.FilterSubject = r.filters[0]
	} else {
		c.FilterSubjects = r.filters
	}
	switch {
	case r.next > 0:
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, r.next
	case !r.since.IsZero():
		since := r.since
		c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &since
	}
	consumer, err := r.js.CreateConsumer(ctx, r.stream, c)
	if err != nil {
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	info := consumer.CachedInfo()
	r.name, r.read, r.pending = info.Name, 0, info.NumPending
	if r.puller, err = pull.New(r.js, r.stream, r.name, readExpires, readBatch); err != nil {
		return err
	}
	r.puller.Once = true
	if err := r.locate(ctx); err != nil {
		r.close(ctx)
		return err
	}
	return nil
}

// close deletes the consumer. The next batch makes another.
func (r *reader) close(ctx context.Context) {
	if r.puller == nil {
		return
	}
	r.puller.Close()
	r.puller = nil
	if r.js.Conn().IsConnected() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readExpires)
		defer cancel()
		// Else the server drops the consumer after the InactiveThreshold.
		_ = r.js.DeleteConsumer(ctx, r.stream, r.name)
	}
}

// batch returns the next messages as soon as there are any, or no messages if there were none for a
// while. After an error the reader stands where it was, and batch may be called again.
func (r *reader) batch(ctx context.Context) (messages []*runner.Message, err error) {
	if r.puller == nil {
		if err := r.open(ctx); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			r.close(ctx)
		}
	}()
	gap := false
	_, err = r.puller.Pull(ctx, readBatch, func(raw *nats.Msg) {
		meta, bad := raw.Metadata()
		if gap = gap || bad != nil || meta.Sequence.Consumer != r.read+1; gap {
			return
		}
		messages = append(messages, runner.MessageOf(raw, meta))
		r.read, r.next, r.pending = meta.Sequence.Consumer, meta.Sequence.Stream+1, meta.NumPending
	})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case gap || len(messages) > 0 && err != nil:
		r.close(ctx)
		err = nil // go on after the messages that came
	}
	return messages, err
}

// refresh asks how many stored messages were not read: pending messages may have expired.
func (r *reader) refresh(ctx context.Context) error {
	if r.puller == nil {
		return r.open(ctx)
	}
	c, err := r.js.Consumer(ctx, r.stream, r.name)
	if err != nil {
		r.close(ctx)
		return fmt.Errorf("read %s: %w", r.stream, err)
	}
	r.pending = c.CachedInfo().NumPending
	return nil
}

// passing reports whether err may go away by itself: everything but a refusal by the server.
func passing(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok {
		return api.Code == 503 || api.Code == 500 || errors.Is(err, jetstream.ErrStreamNotFound) ||
			errors.Is(err, jetstream.ErrConsumerNotFound)
	}
	return !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, errFilters)
}
