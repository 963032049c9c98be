package consumers

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/renewd/renewd/schema"
)

// Message is one delivered message. Its fields are the handler's to read, not to change. The
// methods are safe for concurrent use.
type Message struct {
	Subject  string
	Header   schema.Header
	Data     []byte
	Stream   string
	Sequence uint64
	Time     time.Time // when the stream stored it, by the server's clock
	// Deliveries counts this delivery and those before it. It restarts with the server and counts
	// retries: good for logs and metrics, never for a decision on the work itself. See Exhausted.
	Deliveries uint64

	raw   *nats.Msg
	lease *lease        // nil for a message made by hand
	taken time.Duration // by the lease's monotonic clock
}

// Hold has extend called at every beat from now on, until the handler returns: it renews what must
// live as long as the lease does, a claim for instance: something that lasts no shorter than the
// consumer's AckWait. Call it right after taking that. An error is tried again at the next beat
// until the last success is too old to be trusted; then, or at once if the error wraps
// ErrLeaseLost, the lease is lost and the handler's ctx ends with that cause. extend is not called
// concurrently with itself, but may be under way when the handler returns; its ctx then ends. A
// message made by hand has no beats.
func (m *Message) Hold(extend func(ctx context.Context) error) {
	if m.lease != nil {
		m.lease.hold(extend)
	}
}

// Held reports whether the message is still surely this worker's: the lease counts from before the
// last beat that the server answered, less a margin, by the monotonic and the wall clock. So it is
// false at once after a stall, of the process or the machine. Once false it stays false. A message
// made by hand is always held.
func (m *Message) Held() bool { return m.lease == nil || m.lease.isHeld() }

// What a message may be given before it is to make room for others.
const (
	maxDeliveries = 5
	maxInHand     = 10 * time.Second
)

// Exhausted reports whether the message was tried enough for now, so that a failure should put it
// off instead of having it delivered again in a moment: this is its fifth delivery or a later one,
// or it was delivered before and this delivery has been in hand for more than 10 s, by the
// monotonic clock. The server's count may start again, so there may be some more. A message made by
// hand goes by its Deliveries alone.
func (m *Message) Exhausted() bool {
	return m.Deliveries >= maxDeliveries || m.Deliveries > 1 && m.lease != nil && m.lease.now().mono-m.taken > maxInHand
}

func newMessage(raw *nats.Msg) (*Message, error) {
	meta, err := raw.Metadata()
	if err != nil {
		return nil, err
	}
	return messageOf(raw, meta), nil
}

func messageOf(raw *nats.Msg, meta *nats.MsgMetadata) *Message {
	return &Message{
		Subject: raw.Subject, Header: schema.Header(raw.Header), Data: raw.Data, Stream: meta.Stream, Sequence: meta.Sequence.Stream,
		Time: meta.Timestamp, Deliveries: meta.NumDelivered, raw: raw,
	}
}
