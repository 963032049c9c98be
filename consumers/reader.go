package consumers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// reader reads a stream in its order, without acks and without a gap: what is lost on the way is
// read again. It stands on a consumer in the server's memory that is thrown away with it. Not safe
// for concurrent use.
type reader struct {
	js      jetstream.JetStream
	stream  string
	filters []string
	next    uint64    // sequence to read from; 0: since
	since   time.Time // zero: the oldest

	created time.Time // when the stream was made that next is in; zero: not known yet

	puller  *puller // nil: the consumer is yet to be made
	name    string
	read    uint64 // messages read from this consumer
	pending uint64 // messages that match and were stored but not read, when the last one was
}

const (
	readBatch   = 1000
	readExpires = 2 * time.Second
)

// errAnew: the stream is another one than was read so far, and holds nothing of that.
var errAnew = errors.New("the stream was made anew: it is read from its beginning, and what the old one held and was not read is missed")

// locate makes sure, once there is a consumer, that the reader is in the stream that this was made
// of. After errAnew it is, at the beginning.
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
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: 30 * time.Second,
		DeliverPolicy: jetstream.DeliverAllPolicy,
	}
	if len(r.filters) == 1 {
		c.FilterSubject = r.filters[0] // part of the request's subject, so that permissions can tell it
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
	if r.puller, err = newPuller(r.js, r.stream, r.name, readExpires, readBatch); err != nil {
		return err
	}
	r.puller.once = true
	if err := r.locate(ctx); err != nil {
		r.close(ctx)
		return err
	}
	return nil
}

// close throws the consumer away; the next batch makes another.
func (r *reader) close(ctx context.Context) {
	if r.puller == nil {
		return
	}
	r.puller.close()
	r.puller = nil
	if r.js.Conn().IsConnected() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readExpires)
		defer cancel()
		_ = r.js.DeleteConsumer(ctx, r.stream, r.name) // else the server drops it after the InactiveThreshold
	}
}

// batch returns the next messages as soon as there are any; none if there was nothing for a while.
// After an error the reader stands where it was and batch may be called again.
func (r *reader) batch(ctx context.Context) (messages []*Message, err error) {
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
	_, err = r.puller.pull(ctx, readBatch, func(raw *nats.Msg) {
		meta, bad := raw.Metadata()
		if gap = gap || bad != nil || meta.Sequence.Consumer != r.read+1; gap {
			return
		}
		messages = append(messages, messageOf(raw, meta))
		r.read, r.next, r.pending = meta.Sequence.Consumer, meta.Sequence.Stream+1, meta.NumPending
	})
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case gap || len(messages) > 0 && err != nil:
		r.close(ctx)
		err = nil // go on from what came
	}
	return messages, err
}

// refresh asks how much is stored that was not read: what was pending may have expired.
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
		return api.Code == 503 || api.Code == 500 || errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound)
	}
	return !errors.Is(err, nats.ErrConnectionClosed) && !errors.Is(err, errFilters)
}
