package runner

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

// Config is a Runner's settings. The zero value of an optional field stands for its default.
type Config struct {
	// JetStream is where the stream lives. Required.
	JetStream jetstream.JetStream
	// Stream and Durable name the pull consumer to take messages from. The durable has explicit
	// acks and no limit of deliveries. The runner waits for a missing durable, and never creates a
	// durable. Required.
	Stream, Durable string
	// Template names the destination in spans and metrics, without ids: "renewal.due". Default:
	// Durable.
	Template string
	// Handler handles each message. Required.
	Handler Handler
	// Rejected records a rejection where an operator sees it. The message is removed only after
	// Rejected returned nil. After an error the message comes again. nil: rejections are logged
	// only.
	Rejected func(ctx context.Context, m *Message, reason error) error

	// PutOff takes a message away for longer than a nak may. After a Retry, any other error or a
	// panic, PutOff is called with this error instead of the nak, if the message is Exhausted and
	// still held. A message tried again and again keeps its place among the messages being handled,
	// and enough such messages leave no place for the rest. nil from PutOff means: the work is
	// stored elsewhere, with a timer to bring the work back. The message is then acknowledged, so
	// without the timer the work is lost. An error means: the work is not stored. The message then
	// comes again as without PutOff. PutOff's ctx lasts for 10 s, also when the runner was told to
	// stop. nil: messages are tried forever.
	PutOff func(ctx context.Context, m *Message, err error) error
	// Ready says whether messages may be taken now. Ready must be quick, and safe for concurrent
	// use. While Ready returns an error no messages are asked for. Messages being handled are
	// finished, and a request under way, of a second at most, may still bring some. nil: always.
	Ready func() error

	// Slots is how many messages are handled at a time. Default 16, 1 to 10,000.
	Slots int
	// Beat is how often the lease on a message being handled is renewed. Default 3 s, and never
	// more than a third of the consumer's AckWait.
	Beat time.Duration
	// Drain is how long handlers may go on after Run was told to stop. Default 25 s.
	Drain time.Duration
	// MaxDelay caps the delay of a Retry. Default 2 s.
	MaxDelay time.Duration

	// Logger, Tracer and Meter. nil: nothing is recorded.
	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter

	// Taken, if set, is told of each message in the order of arrival, before Handler is called with
	// the message. Handlers of several slots begin in any order. Taken must be quick.
	Taken func(m *Message)

	// Looked and Missing are for a caller with a durable to look after. Looked, if set, is told the
	// state of the durable, each 10 s or so. Missing, if set, is called when the durable is gone,
	// and makes the durable again.
	Looked  func(*jetstream.ConsumerInfo)
	Missing func(ctx context.Context) error
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
		return fmt.Errorf("runner: JetStream: missing")
	case c.Stream == "":
		return fmt.Errorf("runner: Stream: missing")
	case c.Durable == "":
		return fmt.Errorf("runner: Durable: missing")
	case c.Handler == nil:
		return fmt.Errorf("runner: Handler: missing")
	case c.Slots < 1 || c.Slots > 10_000:
		return fmt.Errorf("runner: Slots: %d: want 1 to 10000", c.Slots)
	case c.Beat < 0, c.Drain < 0, c.MaxDelay < 0:
		return fmt.Errorf("runner: Beat, Drain, MaxDelay: want no negative durations, have "+
			"%v, %v, %v", c.Beat, c.Drain, c.MaxDelay)
	}
	return nil
}

// Once hands one message to c's handler, in a span. The message came from a consumer without acks,
// so the server is told nothing of the result.
func (c Config) Once(ctx context.Context, m *Message) error {
	ctx, span := startSpan(ctx, c.Tracer, c.Template, "", m)
	err := c.Handler(ctx, m)
	endSpan(span, verdictOf(err))
	return err
}
