package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Brake slows a provider's consumer down, for all workers.
type Brake interface {
	// Pause delivers no due renewal of the provider before until; a time that has passed resumes.
	Pause(ctx context.Context, provider string, until time.Time) error
	// Limit sets how many of the provider's renewals may be in hand over all workers.
	Limit(ctx context.Context, provider string, inHand int) error
	// Waiting counts the provider's due renewals that nobody has in hand.
	Waiting(ctx context.Context, provider string) (int64, error)
	// Publish stores an outcome.
	Publish(ctx context.Context, e schema.Event) error
}

// Config is what a Guard stands on. All of it is required but Rules.
type Config struct {
	Provider    string
	Settings    string // fingerprint of the client id and endpoint in use
	Concurrency int    // the brake's limit in good times
	Rules       Rules
	Bucket      jetstream.KeyValue
	Brake       Brake
	Source      string // CloudEvents source of provider events
	Now         func() time.Time
	Logger      *slog.Logger
}

// Guard is one worker's view of one provider. Calls are counted in memory and written together,
// about once a second and when a verdict hangs on them.
type Guard struct {
	Config
	state atomic.Pointer[State]
	read  atomic.Bool // the state is one that was read
	tried atomic.Int64
	kick  chan struct{}

	mu      sync.Mutex
	tally   Tally
	waiters []chan error

	// Of Run alone.
	set        braking
	complaint  string
	complained time.Time
}

// braking is what this worker has last set, and when.
type braking struct {
	limit int
	until time.Time
	at    time.Time
}

// New returns a guard that believes the provider until Run has read the record.
func New(c Config) (*Guard, error) {
	c.Rules = c.Rules.WithDefaults()
	if err := c.Rules.Validate(); err != nil {
		return nil, fmt.Errorf("guard of %s: %w", c.Provider, err)
	}
	g := &Guard{Config: c, kick: make(chan struct{}, 1)}
	g.state.Store(&State{Settings: c.Settings})
	return g, nil
}

// Report counts how a call ended: f is nil for a success. again tells that this user was refused
// before. A Retry-After is remembered for all workers.
func (g *Guard) Report(f *grant.Fault, again bool) {
	t := tallied(f, again, g.Now())
	g.mu.Lock()
	g.tally = g.tally.add(t)
	sum := g.tally
	g.mu.Unlock()
	s := g.state.Load()
	waited := s.Outage != nil || s.Doubt != nil && !s.Doubt.Until.IsZero()
	if waited || sum.bad()+sum.Dead == g.Rules.FailMin || t.Throttled > 0 && sum.Throttled == throttles {
		g.wakeUp()
	}
}

func (g *Guard) wakeUp() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// Wait is how long the provider is to be left alone; 0: it may be called.
func (g *Guard) Wait() time.Duration { return g.WaitSince(time.Time{}) }

// WaitSince is Wait for the tokens of a login at this time. While the provider is only in doubt, a
// login that is newer than the doubt does not wait.
func (g *Guard) WaitSince(login time.Time) time.Duration {
	s, now := g.state.Load(), g.Now()
	var wait time.Duration
	if s.Outage != nil {
		wait = max(0, s.Outage.Until.Sub(now))
	}
	if d := s.Doubt; d != nil && !d.Until.IsZero() && wait == 0 && !login.After(d.Since) {
		wait = g.turn(*d, now)
	}
	return wait
}

// longestTurn bounds how long renewals that wait for the end of a doubt are put off, and with it
// how long after its end the last one goes on. They are many, and each putting off costs a message.
const longestTurn = 5 * time.Minute

// turn is how long a presentation waits while nobody at all is renewed: 0 for one at a time, of
// each worker. Who waits does so for as long again as it has lasted.
func (g *Guard) turn(d Doubt, now time.Time) time.Duration {
	if !now.Before(d.Until) {
		last := g.tried.Load()
		since := now.Sub(time.Unix(0, last))
		over := last < d.Until.UnixNano() || since < 0 || since > max(d.interval(g.Rules), 30*time.Second) // or its answer got lost
		if over && g.tried.CompareAndSwap(last, now.UnixNano()) {
			return 0
		}
	}
	return max(d.Until.Sub(now), min(now.Sub(d.Since), longestTurn), time.Second)
}

// Hold asks, before a user who was refused as v tells is signed out, whether the provider is to be
// believed. It returns after everything this worker has counted is in the shared record. A reason
// means: not now.
func (g *Guard) Hold(ctx context.Context, v grant.Verdict) (reason string, err error) {
	done := make(chan error, 1)
	g.mu.Lock()
	g.waiters = append(g.waiters, done)
	g.mu.Unlock()
	g.wakeUp()
	select {
	case err := <-done:
		switch {
		case errors.Is(err, ErrRecord):
			return schema.ReasonUnproven, nil // whatever it knows is not known here; asking again soon changes nothing
		case err != nil:
			return "", err
		}
		return g.state.Load().Hold(v, g.Now(), g.Rules), nil
	case <-ctx.Done():
		return "", fmt.Errorf("ask the guard of %s: %w", g.Provider, context.Cause(ctx))
	}
}

// State is the shared record as last seen.
func (g *Guard) State() State { return *g.state.Load() }

// Run shares what is counted, sets the brake and tells what is to be told, until ctx ends. Errors
// are logged, and what they left undone is tried again.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		g.round(ctx)
		select {
		case <-tick.C:
		case <-g.kick:
		case <-ctx.Done():
			g.answer(context.Cause(ctx))
			return nil
		}
	}
}

// round is one look at the record. Sharing, braking and telling do not hang on one another: each
// follows from the record.
func (g *Guard) round(ctx context.Context) {
	err := errors.Join(g.share(ctx), g.brake(ctx), g.tell(ctx))
	if err == nil {
		g.complaint, g.complained = "", time.Time{}
		return
	}
	if again := err.Error() == g.complaint && g.Now().Sub(g.complained) < time.Minute; again || ctx.Err() != nil {
		return
	}
	g.complaint, g.complained = err.Error(), g.Now()
	g.Logger.Warn("provider state not kept up; tried again each second", "provider", g.Provider, "error", err)
}

// share adds what was counted to the record.
func (g *Guard) share(ctx context.Context) error {
	g.mu.Lock()
	tally, waiters := g.tally, g.waiters
	g.tally, g.waiters = Tally{}, nil
	g.mu.Unlock()
	err := g.change(ctx, func(s State) State { return s.Next(tally, g.Settings, g.Now(), g.Rules) })
	if err != nil {
		g.mu.Lock()
		g.tally = g.tally.add(tally)
		g.mu.Unlock()
	}
	for _, w := range waiters {
		w <- err
	}
	return err
}

func (g *Guard) answer(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.waiters {
		w <- err
	}
	g.waiters = nil
}

// brake sets what follows from the record: at each change of it, and each minute in case another
// worker set it by an older one.
func (g *Guard) brake(ctx context.Context) error {
	if !g.read.Load() {
		return nil
	}
	s, now := g.state.Load(), g.Now()
	want := braking{s.Limit(now, g.Concurrency), s.PausedUntil(now), now}
	if want.limit == g.set.limit && want.until.Equal(g.set.until) && now.Sub(g.set.at) < time.Minute {
		return nil
	}
	if err := g.Brake.Limit(ctx, g.Provider, want.limit); err != nil {
		return err
	}
	if !want.until.IsZero() {
		if err := g.Brake.Pause(ctx, g.Provider, want.until); err != nil {
			return err
		}
	}
	g.set = want
	return nil
}
