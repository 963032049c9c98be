package consumers

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// Config is what a Runner stands on. The zero value of an optional field stands for its default.
type Config struct {
	// JetStream is where the stream lives. Required.
	JetStream jetstream.JetStream
	// Stream and Durable name the pull consumer to take messages from. It must exist, with explicit
	// acks and no limit of deliveries; the runner waits for it and never creates it. Required.
	Stream, Durable string
	// Template names the destination in spans and metrics, without ids: "renewal.due". Default:
	// Durable.
	Template string
	// Handler handles each message. Required.
	Handler Handler
	// Rejected records a rejection where an operator sees it. The message is removed only once it
	// returned nil; after an error it comes again. nil: rejections are logged only.
	Rejected func(ctx context.Context, m *Message, reason error) error

	// PutOff takes a message away for longer than a nak may: it is called instead of the nak for a
	// message that is Exhausted and still held, after a Retry, any other error or a panic, with
	// that error. A message that is tried again and again keeps its place among those in hand, and
	// enough of them leave none for the rest. nil from it means that the work is stored elsewhere,
	// with a timer that brings it again: the message is then acknowledged, so that without the
	// timer the work is lost. An error means that it is not: the message comes again as without
	// PutOff. Its ctx lasts for 10 s, also when the runner was told to stop. nil: messages are
	// tried for ever.
	PutOff func(ctx context.Context, m *Message, err error) error
	// Ready says whether messages may be taken now; it must be quick, and safe for concurrent use.
	// While it returns an error none are asked for. What is in hand is finished, and a request
	// under way, of a second at most, may still bring some. nil: always.
	Ready func() error

	// Slots is how many messages are handled at a time. Default 16, 1 to 10,000.
	Slots int
	// Beat is how often the lease on a message in hand is renewed. Default 3 s, and never more than
	// a third of the consumer's AckWait.
	Beat time.Duration
	// Drain is how long handlers may go on after Run was told to stop. Default 25 s.
	Drain time.Duration
	// MaxDelay caps what Retry asks for. Default 2 s.
	MaxDelay time.Duration

	// Logger, Tracer and Meter. nil: nothing is recorded.
	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter

	// Of a durable that a subscription looks after; nil: it is made by somebody else.
	looked  func(*jetstream.ConsumerInfo)   // told how far it is, every now and then
	missing func(ctx context.Context) error // makes it anew
}

// WithDefaults returns a copy of c with its zero fields filled in.
func (c Config) WithDefaults() Config {
	if c.Template == "" {
		c.Template = c.Durable
	}
	if c.Slots == 0 {
		c.Slots = 16
	}
	if c.Beat == 0 {
		c.Beat = 3 * time.Second
	}
	if c.Drain == 0 {
		c.Drain = 25 * time.Second
	}
	if c.MaxDelay == 0 {
		c.MaxDelay = 2 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Tracer == nil {
		c.Tracer = tracenoop.NewTracerProvider().Tracer("")
	}
	if c.Meter == nil {
		c.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.JetStream == nil:
		return fmt.Errorf("consumers: JetStream: missing")
	case c.Stream == "":
		return fmt.Errorf("consumers: Stream: missing")
	case c.Durable == "":
		return fmt.Errorf("consumers: Durable: missing")
	case c.Handler == nil:
		return fmt.Errorf("consumers: Handler: missing")
	case c.Slots < 1 || c.Slots > 10_000:
		return fmt.Errorf("consumers: Slots: %d: want 1 to 10000", c.Slots)
	case c.Beat < 0, c.Drain < 0, c.MaxDelay < 0:
		return fmt.Errorf("consumers: Beat, Drain, MaxDelay: want no negative durations, have %v, %v, %v", c.Beat, c.Drain, c.MaxDelay)
	}
	return nil
}
