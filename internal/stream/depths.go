package stream

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// Depths says how much waits where. Counts only: no subject is ever listed.
type Depths struct {
	At     time.Time
	Queues []Queue
	// Timers is the number of grants that wait for their time, Deferred that of logins put off
	// (waiting, due or in hand), Parked that of parked pairs, Outcomes that of the log.
	Timers, Deferred, Parked, Outcomes uint64
	// Sizes are those of the streams, in a fixed order.
	Sizes []Size
}

// Queue is one durable.
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
	for _, base := range []string{Logins, Requests, Renewals, Parked, Outcomes} {
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
		case Parked:
			d.Parked = messages
			continue
		case Outcomes:
			d.Outcomes = messages
			continue
		case Renewals:
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

// queues counts the durables of s. What no durable of RENEWALS has is a timer; the two counts are
// taken one after the other, so the number of timers may be off by what moved in between.
func (d *Depths) queues(ctx context.Context, base string, s jetstream.Stream) error {
	infos := s.ListConsumers(ctx)
	for c := range infos.Info() {
		q := Queue{Stream: base, Consumer: c.Name, Waiting: c.NumPending, InHand: uint64(max(c.NumAckPending, 0)), Paused: c.Paused}
		d.Queues = append(d.Queues, q)
		if base == Renewals && strings.HasPrefix(c.Name, renewPrefix) {
			d.Timers -= min(d.Timers, q.Waiting+q.InHand)
		}
	}
	return infos.Err()
}

// Run measures the server's clock and the depths of the queues until ctx ends, and serves the
// depths as gauges. What cannot be measured is logged and tried again; its error is about the meter
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
		e.config.Logger.WarnContext(ctx, "cannot measure the NATS server", "what", what, "error", err)
	}
}

func (e *Engine) measureDepths(ctx context.Context) error {
	d, err := e.Depths(ctx)
	if err != nil {
		e.depths.Store(nil) // an old number is worse than none
		return err
	}
	e.depths.Store(&d)
	e.alarm(ctx, d.Sizes)
	return nil
}

// gauges serves the last measurement, so that a scrape waits for nothing.
func (e *Engine) gauges() (stop func(), err error) {
	m := e.config.Meter
	var errs [8]error
	gauge := func(i int, name, unit, what string) metric.Int64ObservableGauge {
		g, err := m.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
		errs[i] = err
		return g
	}
	waiting := gauge(0, "renewd.queue.waiting", "{message}", "Messages that no worker has looked at yet.")
	inHand := gauge(1, "renewd.queue.in_hand", "{message}", "Messages that workers have in hand.")
	timers := gauge(2, "renewd.timers", "{grant}", "Grants that wait for their time.")
	parked := gauge(3, "renewd.parked", "{pair}", "Rotated pairs that the store would not take.")
	deferred := gauge(4, "renewd.logins.deferred", "{login}", "Logins that were put off and wait to be tried again.")
	size := gauge(5, "renewd.stream.size", "By", "What a stream takes on disk.")
	limit := gauge(6, "renewd.stream.limit", "By", "What a stream may take on disk, if limited.")
	skew, err := m.Float64ObservableGauge("renewd.clock.skew", metric.WithUnit("s"), metric.WithDescription("How far the NATS server's clock is ahead."))
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
			at := metric.WithAttributes(attribute.String("stream", q.Stream), attribute.String("consumer", q.Consumer))
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
