package runner

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
	Time     time.Time // when the stream stored the message, by the server's clock
	// Deliveries counts the message's deliveries up to this delivery, retries too. The count
	// restarts with the server: good for logs and metrics, never for a decision on the work itself.
	// See Exhausted.
	Deliveries uint64
	// Delivery counts the deliveries of the durable, of all its messages. A missing delivery went
	// elsewhere, or was lost. The count restarts with the durable, and may go back with the server.
	Delivery uint64

	raw   *nats.Msg
	lease *lease        // nil for a message made by hand
	taken time.Duration // by the lease's monotonic clock
}

// KeepAlive has extend called at every heartbeat from now on, until the handler returns. extend
// renews something that must live as long as the lease, a claim for instance, and that lasts no
// shorter than the consumer's AckWait. Call KeepAlive right after taking the claim. An error is
// tried again at the next heartbeat until the last success is too old to be trusted. Then, or at
// once if the error wraps ErrLeaseLost, the lease is lost and the handler's ctx ends with this
// cause. extend is not called concurrently with itself, but may be under way when the handler
// returns. Its ctx then ends. A message made by hand has no heartbeats.
func (m *Message) KeepAlive(extend func(ctx context.Context) error) {
	if m.lease != nil {
		m.lease.keep(extend)
	}
}

// Held reports whether the message is still surely this worker's. The lease counts from before the
// last heartbeat the server answered, less a margin, by the monotonic and the wall clock. So Held
// is false at once after a stall, of the process or the machine. A false Held stays false. A
// message made by hand is always held.
func (m *Message) Held() bool { return m.lease == nil || m.lease.isHeld() }

// The limits after which a message makes room for other messages.
const (
	maxDeliveries = 5
	maxInHand     = 10 * time.Second
)

// Exhausted reports whether the message was tried enough for now. A failure should then put the
// message off instead of having it delivered again in a moment. The message is exhausted from its
// fifth delivery on. A message delivered before is also exhausted once this delivery was handled
// for more than 10 s, by the monotonic clock. The server's count may start again, so there may be
// some more deliveries. A message made by hand goes by its Deliveries alone.
func (m *Message) Exhausted() bool {
	return m.Deliveries >= maxDeliveries ||
		m.Deliveries > 1 && m.lease != nil && m.lease.now().mono-m.taken > maxInHand
}

func newMessage(raw *nats.Msg) (*Message, error) {
	meta, err := raw.Metadata()
	if err != nil {
		return nil, err
	}
	return MessageOf(raw, meta), nil
}

// MessageOf is a message as delivered, without a lease.
func MessageOf(raw *nats.Msg, meta *nats.MsgMetadata) *Message {
	return &Message{
		Subject:    raw.Subject,
		Header:     schema.Header(raw.Header),
		Data:       raw.Data,
		Stream:     meta.Stream,
		Sequence:   meta.Sequence.Stream,
		Time:       meta.Timestamp,
		Deliveries: meta.NumDelivered,
		Delivery:   meta.Sequence.Consumer,
		raw:        raw,
	}
}
