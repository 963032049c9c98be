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
	"github.com/renewd/renewd/schema"
)

// Config is what an Engine needs beside the connection. The zero value of a field stands for its
// default.
type Config struct {
	Subjects schema.Subjects
	// SyncedTTL is how long a user.synced stays in OUTCOMES, 1 s at least. Default 7 days;
	// negative: as long as the stream keeps the rest.
	SyncedTTL time.Duration
	// RejectedTTL is how long an answer stays that is about no record: a message.rejected, and a
	// user.refresh_failed of a user of whom nothing is known. Whoever may publish makes as many of
	// them as they like. 1 s at least, a day is how far back answers are looked for. Default 1 day;
	// negative: as long as the stream keeps the rest.
	RejectedTTL time.Duration
	// Clock is this machine's. Default the system's.
	Clock Clock
	// Propagator puts the span of a call into the message. Default W3C trace context.
	Propagator propagation.TextMapPropagator
	// Meter gets the gauges. Default none.
	Meter metric.Meter
	// Logger hears of what Run cannot measure. Default none.
	Logger *slog.Logger
	// ClockEvery and DepthEvery are the periods of Run's measurements, WatchEvery that of its looks
	// whether the clock must be measured out of turn. Defaults 1 min, 10 s, 1 s.
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
	// crowded are the streams that Run has told of.
	crowded []string
}

const (
	publishesInFlight = 2048
	ackTimeout        = 10 * time.Second
	// A stream without a leader answers nobody for some seconds; so does one that does not exist.
	leaderWait  = 8 * time.Second
	leaderRetry = 250 * time.Millisecond
)

// ConnectOptions are what a connection needs that an Engine publishes on: what cannot be sent now
// fails, and is not sent later. From the client's buffer a publish that was reported as failed
// would still be stored after a reconnect: an outcome twice, an old timer over a newer one.
func ConnectOptions() []nats.Option { return []nats.Option{nats.ReconnectBufSize(-1)} }

// NewEngine returns an engine on the connection of js, made with ConnectOptions. It sends nothing.
func NewEngine(js jetstream.JetStream, c Config) (*Engine, error) {
	pub, err := jetstream.New(js.Conn(), jetstream.WithPublishAsyncMaxPending(2*publishesInFlight), jetstream.WithPublishAsyncTimeout(ackTimeout))
	if err != nil {
		return nil, fmt.Errorf("new engine: %w", err)
	}
	return &Engine{
		js: js, pub: pub, slots: make(chan struct{}, publishesInFlight), config: c.withDefaults(),
		logins: logins{busy: make(chan struct{}, 1)},
	}, nil
}

// Cancel removes the grant's timer and the renewal that waits, if any.
func (e *Engine) Cancel(ctx context.Context, k grant.Key) error {
	if err := e.purge(ctx, Renewals, e.renewals(k)); err != nil {
		return fmt.Errorf("cancel %s: %w", k, err)
	}
	return nil
}

func (e *Engine) timer(k grant.Key) string  { return e.user(timerSubject, k) }
func (e *Engine) due(k grant.Key) string    { return e.user(dueSubject, k) }
func (e *Engine) asked(k grant.Key) string  { return e.due(k) + askedEnd }
func (e *Engine) later(k grant.Key) string  { return e.due(k) + laterEnd }
func (e *Engine) parked(k grant.Key) string { return e.user(parkedSubject, k) }

// A renewal becomes due on a subject of its kind, because a timer that fires takes the place of
// what stands there, and may be one of before: armed by a worker that knew nothing of it, or fired
// twice by servers that were killed. So a command has one where no timer ever fires, and one for
// when it was put off.

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

// commands are the subjects of a user's commands, wildcards included: of all senders, and of none.
func (e *Engine) commands(of schema.Type, k grant.Key) []string {
	return e.config.Subjects.CommandsOf(of, k.Provider, k.User)
}

// user panics on a key that schema refuses: it would reach other users' subjects, and keys are
// checked at the door.
func (e *Engine) user(front string, k grant.Key) string {
	if err := checkKey(k); err != nil {
		panic("stream: " + err.Error())
	}
	return prefixed(e.config.Subjects, front) + "." + k.Provider + "." + schema.EscapeUser(k.User)
}

func checkKey(k grant.Key) error {
	return errors.Join(schema.CheckProvider(k.Provider), schema.CheckUser(k.User))
}

// publish stores one message in the stream base and returns when the server has acknowledged it.
// The server answers a caller's message while others are on their way, so concurrent callers share
// round trips; past the bound they wait for a slot until ctx ends. After an error the message may
// be stored all the same.
func (e *Engine) publish(ctx context.Context, base, subject string, h schema.Header, data []byte) (*jetstream.PubAck, error) {
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("publish %s: %w", subject, context.Cause(ctx))
	}
	name := e.config.Subjects.Name(base)
	for began := time.Now(); ; {
		ack, err := e.publishOnce(ctx, name, &nats.Msg{Subject: subject, Header: nats.Header(h), Data: data})
		// Neither of the two was stored: nobody took it, or it was never sent.
		if !errors.Is(err, jetstream.ErrNoStreamResponse) && !errors.Is(err, nats.ErrReconnectBufExceeded) {
			if err != nil {
				err = fmt.Errorf("publish %s: %w", subject, err)
			}
			return ack, err
		}
		if time.Since(began) > leaderWait {
			return nil, fmt.Errorf("publish %s: no stream takes it: is NATS up, and has %s a leader? "+
				"If it does not exist: renewd streams apply: %w", subject, name, err)
		}
		select {
		case <-time.After(leaderRetry):
		case <-ctx.Done():
			return nil, fmt.Errorf("publish %s: %w: %w", subject, context.Cause(ctx), err)
		}
	}
}

func (e *Engine) publishOnce(ctx context.Context, stream string, m *nats.Msg) (*jetstream.PubAck, error) {
	// The client's own retries would go on after ctx ended.
	ack, err := e.pub.PublishMsgAsync(m, jetstream.WithExpectStream(stream), jetstream.WithRetryAttempts(0))
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
