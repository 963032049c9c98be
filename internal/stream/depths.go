package stream

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/topology"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Depths says how much waits where. Depths only counts, and never lists a subject.
type Depths struct {
	At     time.Time
	Queues []Queue
	// Timers is the number of grants waiting for their time, Deferred of logins put off (waiting,
	// due or being handled), Parked of parked pairs, Outcomes of messages in the log.
	Timers, Deferred, Parked, Outcomes uint64
	// Sizes are the sizes of the streams, in a fixed order.
	Sizes []Size
}

// Queue is a durable.
type Queue struct {
	Stream   string
	Consumer string
	Waiting  uint64 // not delivered yet
	InHand   uint64 // delivered, not acknowledged
	Paused   bool
}

// Depths asks the server.
func (e *Engine) Depths(ctx context.Context) (Depths, error) {
	d := Depths{At: e.config.Clock.Wall()}
	for _, base := range []string{
		topology.Logins, topology.Requests, topology.Renewals, topology.Parked, topology.Outcomes,
	} {
		name := e.config.Subjects.Name(base)
		s, err := e.js.Stream(ctx, name)
		if err != nil {
			return d, fmt.Errorf("measure stream %s: %w", name, err)
		}
		info := s.CachedInfo()
		messages := info.State.Msgs
		limit := uint64(max(info.Config.MaxBytes, 0))
		d.Sizes = append(d.Sizes, Size{Stream: base, Bytes: info.State.Bytes, Limit: limit})
		switch base {
		case topology.Parked:
			d.Parked = messages
			continue
		case topology.Outcomes:
			d.Outcomes = messages
			continue
		case topology.Renewals:
			if d.Deferred, err = e.deferredCount(ctx); err != nil {
				return d, err
			}
			d.Timers = messages - min(messages, d.Deferred)
		}
		if err := d.queues(ctx, base, s); err != nil {
			return d, fmt.Errorf("measure consumers of %s: %w", name, err)
		}
	}
	return d, nil
}

// queues counts the durables of s. A message of RENEWALS that no durable has is a timer. The
// messages and the durables are counted one after the other, so the number of timers may be off by
// the messages that moved in between.
func (d *Depths) queues(ctx context.Context, base string, s jetstream.Stream) error {
	infos := s.ListConsumers(ctx)
	for c := range infos.Info() {
		q := Queue{
			Stream:   base,
			Consumer: c.Name,
			Waiting:  c.NumPending,
			InHand:   uint64(max(c.NumAckPending, 0)),
			Paused:   c.Paused,
		}
		d.Queues = append(d.Queues, q)
		if base == topology.Renewals && strings.HasPrefix(c.Name, topology.RenewPrefix) {
			d.Timers -= min(d.Timers, q.Waiting+q.InHand)
		}
	}
	return infos.Err()
}

// Run measures the server's clock and the depths of the queues until ctx ends, and serves the
// depths as gauges. A failed measurement is logged and tried again. Run's error is about the meter
// only.
func (e *Engine) Run(ctx context.Context) error {
	stop, err := e.gauges()
	if err != nil {
		return fmt.Errorf("register gauges: %w", err)
	}
	defer stop()
	clock, depth := time.NewTicker(e.config.ClockEvery), time.NewTicker(e.config.DepthEvery)
	watch := time.NewTicker(e.config.WatchEvery)
	defer clock.Stop()
	defer depth.Stop()
	defer watch.Stop()
	e.measure(ctx, "clock", e.SyncClock)
	e.measure(ctx, "queues", e.measureDepths)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-clock.C:
			e.measure(ctx, "clock", e.SyncClock)
		case <-watch.C:
			if e.disagree() {
				e.measure(ctx, "clock", e.SyncClock)
			}
		case <-depth.C:
			if e.Ready() != nil {
				e.measure(ctx, "clock", e.SyncClock)
			}
			e.measure(ctx, "queues", e.measureDepths)
		}
	}
}

func (e *Engine) measure(ctx context.Context, what string, f func(context.Context) error) {
	bounded, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	if err := f(bounded); err != nil && ctx.Err() == nil {
		e.config.Logger.WarnContext(ctx, "cannot measure the NATS server", "what", what,
			"error", err)
	}
}

func (e *Engine) measureDepths(ctx context.Context) error {
	d, err := e.Depths(ctx)
	if err != nil {
		e.depths.Store(nil) // an old number is worse than no number
		return err
	}
	e.depths.Store(&d)
	e.alarm(ctx, d.Sizes)
	return nil
}

// gauges serves the last measurement, so a scrape waits for nothing.
func (e *Engine) gauges() (stop func(), err error) {
	m := e.config.Meter
	var errs [8]error
	gauge := func(i int, name, unit, what string) metric.Int64ObservableGauge {
		g, err := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs[i] = err
		return g
	}
	waiting := gauge(0, "renewd.queue.waiting", "{message}",
		"Messages that no worker has looked at yet.")
	inHand := gauge(1, "renewd.queue.in_hand", "{message}", "Messages that workers are working on.")
	timers := gauge(2, "renewd.timers", "{grant}", "Grants that wait for their time.")
	parked := gauge(3, "renewd.parked", "{pair}", "Rotated pairs that the store would not take.")
	deferred := gauge(4, "renewd.logins.deferred", "{login}",
		"Logins that were put off and wait to be tried again.")
	size := gauge(5, "renewd.stream.size", "By", "What a stream takes on disk.")
	limit := gauge(6, "renewd.stream.limit", "By", "What a stream may take on disk, if limited.")
	skew, err := m.Float64ObservableGauge("renewd.clock.skew", metric.WithUnit("s"),
		metric.WithDescription("How far the NATS server's clock is ahead."))
	errs[7] = err
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	registration, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if e.clock.Load() != nil {
			o.ObserveFloat64(skew, e.Skew().Seconds())
		}
		d := e.depths.Load()
		if d == nil {
			return nil
		}
		for _, q := range d.Queues {
			at := metric.WithAttributes(attribute.String("stream", q.Stream),
				attribute.String("consumer", q.Consumer))
			o.ObserveInt64(waiting, int64(q.Waiting), at)
			o.ObserveInt64(inHand, int64(q.InHand), at)
		}
		for _, s := range d.Sizes {
			at := metric.WithAttributes(attribute.String("stream", s.Stream))
			o.ObserveInt64(size, int64(s.Bytes), at)
			if s.Limit > 0 {
				o.ObserveInt64(limit, int64(s.Limit), at)
			}
		}
		o.ObserveInt64(timers, int64(d.Timers))
		o.ObserveInt64(parked, int64(d.Parked))
		o.ObserveInt64(deferred, int64(d.Deferred))
		return nil
	}, waiting, inHand, timers, parked, deferred, size, limit, skew)
	if err != nil {
		return nil, err
	}
	return func() { _ = registration.Unregister() }, nil
}

// CountRenewals counts the grants waiting or due in RENEWALS: all its messages but the logins put
// off. created is when the stream was made.
func (e *Engine) CountRenewals(ctx context.Context) (created time.Time, n uint64, err error) {
	name := e.config.Subjects.Name(topology.Renewals)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return time.Time{}, 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	deferred, err := e.deferredCount(ctx)
	if err != nil {
		return time.Time{}, 0, err
	}
	info := s.CachedInfo()
	return info.Created, info.State.Msgs - min(info.State.Msgs, deferred), nil
}
