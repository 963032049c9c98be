package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Puller asks a durable for messages, one request at a time. A Puller speaks the pull protocol
// itself, on one subscription for its whole life, so a request costs one message. A stored message
// may look like a status of the server: an empty body and a Status header, which any publisher can
// send. Puller still takes it for a stored message.
type Puller struct {
	nc      *nats.Conn
	sub     *nats.Subscription
	replies chan *nats.Msg
	inbox   string // replies to request n come to inbox.n
	subject string
	expires time.Duration // how long the server keeps a request open
	n       uint64

	// Once has a request end as soon as any message came. Set Once before the first Pull.
	Once bool
}

// errNoAnswer: the server neither filled a request nor said that the request ran out.
var errNoAnswer = errors.New("the server did not answer a pull request in time")

// errStatus is an end of a request that means more than "nothing there".
var errStatus = errors.New("pull request ended")

// New returns a Puller of a consumer. A Pull may ask for at most limit messages.
func New(
	js jetstream.JetStream, stream, durable string, expires time.Duration, limit int,
) (*Puller, error) {
	nc := js.Conn()
	p := &Puller{
		nc:      nc,
		inbox:   nc.NewInbox(),
		subject: APIPrefix(js) + "CONSUMER.MSG.NEXT." + stream + "." + durable,
		expires: expires,
		replies: make(chan *nats.Msg, 2*limit+16),
	}
	// A channel, since the synchronous form takes a publisher's "Status: 503" for the server's.
	sub, err := nc.ChanSubscribe(p.inbox+".*", p.replies)
	if err != nil {
		return nil, fmt.Errorf("subscribe to pull replies: %w", err)
	}
	p.sub = sub
	return p, nil
}

// Close ends the request under way, if any. Messages the server sent meanwhile are lost: with acks,
// Drain first.
func (p *Puller) Close() { _ = p.sub.Unsubscribe() }

// Drain waits until the request under way, with left messages still to come, has ended, and hands
// these messages to take. Unsubscribing instead would lose messages that the server has counted as
// delivered but not yet sent.
func (p *Puller) Drain(left int, take func(*nats.Msg)) (got int) {
	if !p.nc.IsConnected() {
		return 0
	}
	got, _ = p.collect(context.Background(), p.reply(), left, take) // an end is an end
	return got
}

func (p *Puller) reply() string { return p.inbox + "." + strconv.FormatUint(p.n, 10) }

// Pull asks for n messages and hands each to take as the message arrives. Pull returns nil once n
// came or the server has closed the request, at the latest when expires has passed. Nothing is
// under way then. When ctx ends, Pull returns with the request open: Drain or Close the Puller.
func (p *Puller) Pull(ctx context.Context, n int, take func(*nats.Msg)) (got int, err error) {
	p.n++
	reply := p.reply()
	request, err := json.Marshal(struct {
		Batch   int           `json:"batch"`
		Expires time.Duration `json:"expires"`
		// with expires: waits for the first message only
		Once bool `json:"no_wait,omitempty"`
	}{n, p.expires, p.Once})
	if err != nil {
		return 0, err
	}
	if err := p.nc.PublishRequest(p.subject, reply, request); err != nil {
		return 0, fmt.Errorf("ask for messages: %w", err)
	}
	return p.collect(ctx, reply, n, take)
}

// collect hands messages to take until n came or the request with this reply subject has ended.
func (p *Puller) collect(
	ctx context.Context, reply string, n int, take func(*nats.Msg),
) (got int, err error) {
	late := time.NewTimer(p.expires + p.expires/2 + time.Second)
	defer late.Stop()
	for got < n {
		var msg *nats.Msg
		select {
		case msg = <-p.replies:
		case <-late.C:
			return got, errNoAnswer
		case <-ctx.Done():
			return got, ctx.Err()
		}
		if delivered(msg) {
			got++
			take(msg)
			continue
		}
		if msg.Subject != reply {
			continue // the end of an older request
		}
		if over, err := ended(msg); over {
			return got, err
		}
	}
	return got, nil
}

// delivered reports whether msg comes from the stream. Only messages from the stream can be
// acknowledged, the server's own never.
func delivered(msg *nats.Msg) bool { return strings.HasPrefix(msg.Reply, "$JS.ACK.") }

// ended reads a status message.
func ended(msg *nats.Msg) (over bool, err error) {
	switch code := msg.Header.Get("Status"); code {
	case "100": // a heartbeat
		return false, nil
	case "404", "408": // nothing there, ran out
		return true, nil
	case "503":
		return true, fmt.Errorf("%w: no such stream or consumer, or JetStream is away: %w",
			errStatus, nats.ErrNoResponders)
	default:
		return true, fmt.Errorf("%w: status %s: %s", errStatus, code, msg.Header.Get("Description"))
	}
}

// APIPrefix is the prefix of js's request subjects.
func APIPrefix(js jetstream.JetStream) string {
	switch o := js.Options(); {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	default:
		return jetstream.DefaultAPIPrefix
	}
}
