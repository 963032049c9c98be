package consumers

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

// puller asks a durable for messages, one request at a time. It speaks the pull protocol itself, on
// one subscription for its whole life: a request then costs one message, and a stored message that
// looks like a status of the server (an empty body and a Status header, which any publisher can
// send) is still taken for what it is.
type puller struct {
	nc      *nats.Conn
	sub     *nats.Subscription
	replies chan *nats.Msg
	inbox   string // replies to request n come to inbox.n
	subject string
	expires time.Duration // how long the server keeps a request open
	once    bool          // a request ends as soon as anything came
	n       uint64
}

// errNoAnswer: the server neither filled a request nor said that it ran out.
var errNoAnswer = errors.New("the server did not answer a pull request in time")

// errStatus is an end of a request that means more than "nothing there".
var errStatus = errors.New("pull request ended")

// newPuller makes room for limit messages, the most that one pull may ask for.
func newPuller(js jetstream.JetStream, stream, durable string, expires time.Duration, limit int) (*puller, error) {
	nc := js.Conn()
	p := &puller{
		nc: nc, inbox: nc.NewInbox(), subject: apiPrefix(js) + "CONSUMER.MSG.NEXT." + stream + "." + durable, expires: expires,
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

// close ends the request under way, if any. What the server sent meanwhile is lost: with acks,
// drain first.
func (p *puller) close() { _ = p.sub.Unsubscribe() }

// drain waits until the request under way, of which left messages are still to come, has ended, and
// hands what it brings to take. Unsubscribing instead would lose what the server has counted as
// delivered but not yet sent.
func (p *puller) drain(left int, take func(*nats.Msg)) (got int) {
	if !p.nc.IsConnected() {
		return 0
	}
	got, _ = p.collect(context.Background(), p.reply(), left, take) // an end is an end
	return got
}

func (p *puller) reply() string { return p.inbox + "." + strconv.FormatUint(p.n, 10) }

// pull asks for n messages and hands each to take as it arrives. It returns nil once n came or the
// server has closed the request, at the latest when expires has passed: nothing is under way then.
// When ctx ends it returns with the request open: drain or close it.
func (p *puller) pull(ctx context.Context, n int, take func(*nats.Msg)) (got int, err error) {
	p.n++
	reply := p.reply()
	request, err := json.Marshal(struct {
		Batch   int           `json:"batch"`
		Expires time.Duration `json:"expires"`
		Once    bool          `json:"no_wait,omitempty"` // with expires: waits for the first message only
	}{n, p.expires, p.once})
	if err != nil {
		return 0, err
	}
	if err := p.nc.PublishRequest(p.subject, reply, request); err != nil {
		return 0, fmt.Errorf("ask for messages: %w", err)
	}
	return p.collect(ctx, reply, n, take)
}

// collect hands what comes to take until n came or the request with this reply subject has ended.
func (p *puller) collect(ctx context.Context, reply string, n int, take func(*nats.Msg)) (got int, err error) {
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

// delivered reports whether msg comes from the stream. Only those can be acknowledged; the server's
// own never.
func delivered(msg *nats.Msg) bool { return strings.HasPrefix(msg.Reply, "$JS.ACK.") }

// ended reads a status message.
func ended(msg *nats.Msg) (over bool, err error) {
	switch code := msg.Header.Get("Status"); code {
	case "100": // a heartbeat
		return false, nil
	case "404", "408": // nothing there, ran out
		return true, nil
	case "503":
		return true, fmt.Errorf("%w: no such stream or consumer, or JetStream is away: %w", errStatus, nats.ErrNoResponders)
	default:
		return true, fmt.Errorf("%w: status %s: %s", errStatus, code, msg.Header.Get("Description"))
	}
}

// apiPrefix is where js sends its requests.
func apiPrefix(js jetstream.JetStream) string {
	switch o := js.Options(); {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	default:
		return jetstream.DefaultAPIPrefix
	}
}

// backoff doubles from 100 ms to 1 s: a server that is back must not wait for us.
type backoff struct{ next time.Duration }

// wait waits for the next step, or until ctx ends.
func (b *backoff) wait(ctx context.Context) {
	b.next = min(max(2*b.next, 100*time.Millisecond), time.Second)
	select {
	case <-ctx.Done():
	case <-time.After(b.next):
	}
}
