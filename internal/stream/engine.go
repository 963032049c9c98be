package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Config is everything an Engine needs beside the connection. The zero value of a field stands for
// its default.
type Config struct {
	Subjects schema.Subjects
	// SyncedTTL is how long a user.synced or a token.read stays in OUTCOMES, 1 s at least. Default
	// 7 days; negative: as long as the stream keeps the rest.
	SyncedTTL time.Duration
	// RejectedTTL is how long an answer about no record stays: a message.rejected, and a
	// user.refresh_failed of an unknown user. A client with the right to publish can cause any
	// number of such answers. RejectedTTL is 1 s at least; answers are looked for a day back.
	// Default 1 day; negative: as long as the stream keeps the rest.
	RejectedTTL time.Duration
	// Clock is this machine's. Default the system's.
	Clock Clock
	// Propagator puts the span of a call into the message. Default W3C trace context.
	Propagator propagation.TextMapPropagator
	// Meter gets the gauges. Default: a meter that does nothing.
	Meter metric.Meter
	// Logger hears of Run's failed measurements. Default: no log.
	Logger *slog.Logger
	// ClockEvery and DepthEvery are the periods of Run's measurements. WatchEvery is the period of
	// Run's looks whether the clock must be measured out of turn. Defaults 1 min, 10 s, 1 s.
	ClockEvery, DepthEvery, WatchEvery time.Duration
}

func (c Config) withDefaults() Config {
	if c.SyncedTTL == 0 {
		c.SyncedTTL = 7 * 24 * time.Hour
	}
	if c.RejectedTTL == 0 {
		c.RejectedTTL = 24 * time.Hour
	}
	if c.Clock.Wall == nil || c.Clock.Mono == nil {
		c.Clock = systemClock()
	}
	if c.Propagator == nil {
		c.Propagator = propagation.TraceContext{}
	}
	if c.Meter == nil {
		c.Meter = metricnoop.NewMeterProvider().Meter("")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.ClockEvery == 0 {
		c.ClockEvery = time.Minute
	}
	if c.DepthEvery == 0 {
		c.DepthEvery = 10 * time.Second
	}
	if c.WatchEvery == 0 {
		c.WatchEvery = time.Second
	}
	return c
}

// Engine arms timers, wakes grants, publishes outcomes and parks pairs.
type Engine struct {
	js     jetstream.JetStream // requests
	pub    jetstream.JetStream // publishes: its own bound and acknowledgement timeout
	slots  chan struct{}       // bounds publishes in flight
	config Config
	clock  atomic.Pointer[measurement]
	depths atomic.Pointer[Depths]
	logins logins
	told   told
	// crowded are the streams that Run has reported as filling up.
	crowded []string
}

const (
	publishesInFlight = 2048
	ackTimeout        = 10 * time.Second
	// A stream without a leader does not answer for some seconds, nor does a missing stream.
	leaderWait  = 8 * time.Second
	leaderRetry = 250 * time.Millisecond
)

// ConnectOptions are the options of an Engine's connection: a message that cannot be sent now
// fails, and is not sent later. Otherwise a publish reported as failed would still be stored after
// a reconnect, from the client's buffer. The late publish would store an outcome twice, or an old
// timer over a newer one.
func ConnectOptions() []nats.Option { return []nats.Option{nats.ReconnectBufSize(-1)} }

// NewEngine returns an engine on the connection of js, made with ConnectOptions. NewEngine sends
// nothing.
func NewEngine(js jetstream.JetStream, c Config) (*Engine, error) {
	pub, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(2*publishesInFlight),
		jetstream.WithPublishAsyncTimeout(ackTimeout))
	if err != nil {
		return nil, fmt.Errorf("new engine: %w", err)
	}
	return &Engine{
		js: js, pub: pub, slots: make(chan struct{}, publishesInFlight), config: c.withDefaults(),
		logins: logins{busy: make(chan struct{}, 1)},
	}, nil
}

// Cancel removes the grant's timer and the waiting renewal, if any.
func (e *Engine) Cancel(ctx context.Context, k grant.Key) error {
	if err := e.purge(ctx, topology.Renewals, e.renewals(k)); err != nil {
		return fmt.Errorf("cancel %s: %w", k, err)
	}
	return nil
}

// Bucket opens a bucket, by its name before a prefix.
func (e *Engine) Bucket(ctx context.Context, base string) (jetstream.KeyValue, error) {
	name := e.config.Subjects.Name(base)
	kv, err := e.js.KeyValue(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("bucket %s: %w", name, err)
	}
	return kv, nil
}

func (e *Engine) timer(k grant.Key) string  { return e.user(topology.TimerFront, k) }
func (e *Engine) due(k grant.Key) string    { return e.user(topology.DueFront, k) }
func (e *Engine) asked(k grant.Key) string  { return e.due(k) + topology.AskedEnd }
func (e *Engine) later(k grant.Key) string  { return e.due(k) + topology.LaterEnd }
func (e *Engine) parked(k grant.Key) string { return e.user(topology.ParkedFront, k) }

// A renewal becomes due on a subject of its kind. A timer that fires takes the place of the message
// on its target. The timer may be outdated: armed by a worker that did not know of this message, or
// fired twice by killed servers. So a command has a subject where no timer ever fires, and another
// subject for a command put off.

// wakes is where work becomes due at once.
func (e *Engine) wakes(k grant.Key, w grant.Work) string {
	if grant.IsCommand(w.Cause) {
		return e.asked(k)
	}
	return e.due(k)
}

// fires is where a timer with this work fires.
func (e *Engine) fires(k grant.Key, w grant.Work) string {
	if grant.IsCommand(w.Cause) {
		return e.later(k)
	}
	return e.due(k)
}

// renewals is where a grant may wait. A timer that fires meanwhile is found due.
func (e *Engine) renewals(k grant.Key) []string {
	return []string{e.timer(k), e.due(k), e.asked(k), e.later(k)}
}

// commands are the subjects of a user's commands, wildcards included, with and without a sender.
func (e *Engine) commands(of schema.Type, k grant.Key) []string {
	return e.config.Subjects.CommandsOf(of, k.Provider, k.User)
}

// user panics on a key that schema refuses, since such a key would reach other users' subjects.
// Keys are checked where they come in.
func (e *Engine) user(front string, k grant.Key) string {
	if err := k.Check(); err != nil {
		panic("stream: " + err.Error())
	}
	return topology.Prefixed(e.config.Subjects, front) + "." + k.Provider + "." +
		schema.EscapeUser(k.User)
}

// publish stores one message in the stream base and returns when the server has acknowledged the
// message. The server answers a caller's message while other messages are on their way, so
// concurrent callers share round trips. Past the bound, callers wait for a slot until ctx ends.
// Even after an error the message may be stored.
func (e *Engine) publish(
	ctx context.Context, base, subject string, h schema.Header, data []byte,
) (*jetstream.PubAck, error) {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("publish %s: %w", subject, context.Cause(ctx))
	}
	name := e.config.Subjects.Name(base)
	for began := time.Now(); ; {
		ack, err := e.publishOnce(ctx, name, &nats.Msg{
			Subject: subject,
			Header:  nats.Header(h),
			Data:    data,
		})
		// After either of these two errors nothing was stored: no stream took the message, or the
		// client never sent the message.
		if !errors.Is(err, jetstream.ErrNoStreamResponse) &&
			!errors.Is(err, nats.ErrReconnectBufExceeded) {
			if err != nil {
				err = fmt.Errorf("publish %s: %w", subject, err)
			}
			return ack, err
		}
		if time.Since(began) > leaderWait {
			return nil, fmt.Errorf("publish %s: no stream takes it: "+
				"is NATS up, and has %s a leader? "+
				"If it does not exist: renewd streams apply: %w", subject, name, err)
		}
		select {
		case <-time.After(leaderRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("publish %s: %w: %w", subject, context.Cause(ctx), err)
		}
	}
}

func (e *Engine) publishOnce(
	ctx context.Context, stream string, m *nats.Msg,
) (*jetstream.PubAck, error) {
	// The client's own retries would go on after ctx ended.
	ack, err := e.pub.PublishMsgAsync(m, jetstream.WithExpectStream(stream),
		jetstream.WithRetryAttempts(0))
	if err != nil {
		return nil, err
	}
	select {
	case a := <-ack.Ok():
		return a, nil
	case err := <-ack.Err():
		return nil, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
