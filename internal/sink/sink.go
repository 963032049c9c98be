package sink

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"

	"github.com/renewd/renewd/internal/lease"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/schema"
)

// Config is everything a sink needs. The zero value of an optional field stands for its default.
type Config struct {
	// Name is the sink's, as senders.CheckName takes it. Required.
	Name string
	// Target is where the outcomes go. Required. Run closes it.
	Target Target
	// JetStream is where the streams are. Required.
	JetStream jetstream.JetStream
	Subjects  schema.Subjects
	// Stream and Durable are the stream of outcomes and the sink's durable there, as in the
	// topology. Required.
	Stream  string
	Durable jetstream.ConsumerConfig
	// Read reads the outcome with this sequence from the stream's leader. Required.
	Read func(ctx context.Context, sequence uint64) (e schema.Event, found bool, err error)
	// Acted announces an act of the sink itself. Required.
	Acted func(ctx context.Context, act string) error

	// Concurrency is how many users' outcomes are delivered at a time. Default 8.
	Concurrency int
	// Schedule is how long after each failure an outcome is tried again. Default Schedule().
	Schedule []time.Duration
	// Drain is how long deliveries under way may go on after Run was told to stop. Default 25 s.
	Drain time.Duration
	// Lease is how long a process that vanished keeps the sink from other processes. Default 15 s.
	Lease time.Duration
	// Now is the NATS server's time. Default: this machine's.
	Now func() time.Time
	// Host names this process for people.
	Host string
	// Rand draws from [0, 1), for jitter. Required.
	Rand func() float64

	// Logger, Tracer and Meter. nil: nothing is recorded.
	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter
}

// Sink takes outcomes to one target.
type Sink struct {
	Config
	bucket Bucket
	meters meters
	status atomic.Pointer[figures] // nil: this process does not run the sink
}

// New checks c, and fills in its defaults. Its errors name the field.
func New(c Config) (*Sink, error) {
	if err := senders.CheckName(c.Name); err != nil {
		return nil, fmt.Errorf("sink %q: Name: %w", c.Name, err)
	}
	if c.Target == nil || c.JetStream == nil || c.Read == nil || c.Acted == nil || c.Rand == nil ||
		c.Stream == "" || c.Durable.Durable == "" {
		return nil, fmt.Errorf("sink %s: Target, JetStream, Stream, Durable, Read, Acted or "+
			"Rand: missing", c.Name)
	}
	if c.Concurrency == 0 {
		c.Concurrency = 8
	}
	if c.Schedule == nil {
		c.Schedule = Schedule()
	}
	if c.Drain == 0 {
		c.Drain = 25 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	c.Logger = c.Logger.With("sink", c.Name)
	s := &Sink{Config: c}
	var err error
	if s.meters, err = newMeters(s); err != nil {
		return nil, fmt.Errorf("sink %s: Meter: %w", c.Name, err)
	}
	return s, nil
}

// patience is how long a request to the NATS server may take.
const patience = 4 * time.Second

// Run takes outcomes to the target whenever no other process does, until ctx ends, and returns nil.
// Run waits for a missing server or target. Call Run once.
func (s *Sink) Run(ctx context.Context) error {
	defer s.meters.close()
	defer s.Target.Close()
	lease.Lease{
		Open: s.open, Place: keyLease + s.Name, What: "the sink", Lasts: s.Lease, Host: s.Host,
		Now: s.Now, Rand: s.Rand, Log: s.Logger,
	}.Run(ctx, s.hold)
	return nil
}

func (s *Sink) open(ctx context.Context) (_ jetstream.KeyValue, err error) {
	s.bucket, err = OpenBucket(ctx, s.JetStream, s.Subjects)
	return s.bucket.kv, err
}
