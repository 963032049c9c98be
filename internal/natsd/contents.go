package natsd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// contents are the contents of a store's streams, by account and name.
type contents map[string]content

// content is the part of a stream that must not change while the stream is encrypted. Messages that
// may go meanwhile are left out: messages whose time ends, and timers that fire.
type content struct {
	at       time.Time // messages that end before this time are left out
	last     uint64    // the newest sequence
	lasting  uint64    // messages that are not left out
	sum      [sha256.Size]byte
	messages uint64            // also the messages left out
	acked    map[string]uint64 // each durable's, by name
}

// soon is how long the comparison of a store may take. In a longer comparison a message that ends
// meanwhile looks like a loss, and the files stay unchanged.
const soon = time.Hour

// read adds the streams of an account. Messages newer than those in before are left out: a server
// that copies from another account goes on copying.
func (c contents) read(
	ctx context.Context, js jetstream.JetStream, account string, before contents,
) error {
	names := js.StreamNames(ctx)
	for name := range names.Name() {
		s, err := js.Stream(ctx, name)
		if err != nil {
			return err
		}
		info := s.CachedInfo()
		name = account + "/" + name
		have := content{
			at: time.Now().Add(soon), last: info.State.LastSeq, messages: info.State.Msgs,
			acked: map[string]uint64{},
		}
		upTo := have.last
		if first, ok := before[name]; ok {
			have.at, upTo = first.at, first.last
		}
		consumers := s.ListConsumers(ctx)
		for i := range consumers.Info() {
			if i.Config.Durable != "" { // other consumers go when nothing reads from them
				have.acked[i.Name] = i.AckFloor.Stream
			}
		}
		if err := consumers.Err(); err != nil {
			return err
		}
		if err := have.messagesOf(ctx, s, info, upTo); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		c[name] = have
	}
	return names.Err()
}

// messagesOf adds up the messages of a stream. The sum does not depend on their order.
func (c *content) messagesOf(
	ctx context.Context, s jetstream.Stream, info *jetstream.StreamInfo, upTo uint64,
) error {
	for seq := max(1, info.State.FirstSeq); seq <= upTo; seq++ {
		m, err := s.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if seq = m.Sequence; seq > upTo {
			return nil
		}
		if end := endOf(m, info.Config); !end.IsZero() && end.Before(c.at) {
			continue
		}
		c.lasting++
		for i, b := range digest(m) {
			c.sum[i] ^= b
		}
	}
	return nil
}

// endOf is when a message goes by itself; zero: at no set time.
func endOf(m *jetstream.RawStreamMsg, config jetstream.StreamConfig) (end time.Time) {
	if config.MaxAge > 0 {
		end = m.Time.Add(config.MaxAge)
	}
	if ttl := m.Header.Get(jetstream.MsgTTLHeader); ttl != "" && ttl != "never" {
		life, err := time.ParseDuration(ttl)
		if err != nil { // in seconds
			life, _ = time.ParseDuration(ttl + "s")
		}
		end = m.Time.Add(life)
	}
	if at, ok := strings.CutPrefix(m.Header.Get("Nats-Schedule"), "@at "); ok {
		end, _ = time.Parse(time.RFC3339, at)
	}
	return end
}

func digest(m *jetstream.RawStreamMsg) [sha256.Size]byte {
	h := sha256.New()
	fmt.Fprintf(h, "%d %d %q", m.Sequence, m.Time.UnixNano(), m.Subject)
	for _, name := range slices.Sorted(maps.Keys(nats.Header(m.Header))) {
		fmt.Fprintf(h, "%q%q", name, m.Header[name])
	}
	h.Write(m.Data)
	return [sha256.Size]byte(h.Sum(nil))
}

// compare reports the contents that c holds and after does not.
func (c contents) compare(after contents) error {
	for name, was := range c {
		is, ok := after[name]
		switch {
		case !ok:
			return fmt.Errorf("%w: %s is gone", ErrDiffers, name)
		case is.last < was.last || is.lasting != was.lasting || is.sum != was.sum:
			return fmt.Errorf("%w: %s has %d messages up to %d, before %d up to %d", ErrDiffers,
				name, is.lasting, is.last, was.lasting, was.last)
		}
		for consumer, acked := range was.acked {
			if now, ok := is.acked[consumer]; !ok || now < acked {
				return fmt.Errorf("%w: consumer %s of %s is at %d, before at %d", ErrDiffers,
					consumer, name, now, acked)
			}
		}
	}
	return nil
}

func (c contents) count() (n Encrypted) {
	for _, s := range c {
		n.Streams++
		n.Messages += s.messages
	}
	return n
}
