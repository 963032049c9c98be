package guard

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
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

// Guard is one worker's view of one provider. Calls are counted in memory and written together, about once a second and
// when a verdict hangs on them.
type Guard struct {
	Config
	state atomic.Pointer[State]
	kick  chan struct{}

	mu      sync.Mutex
	tally   Tally
	waiters []chan error
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

// Report counts how a refresh ended; the empty class is a success. again tells that this user was refused before.
func (g *Guard) Report(class grant.Class, again bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case class == "":
		g.tally.OK++
	case class == grant.Permanent && again:
		g.tally.Again++
	case class == grant.Permanent:
		g.tally.Dead++
	case class == grant.Config:
		g.tally.Config++
	case class == grant.Unsent, class == grant.Ambiguous:
		g.tally.Failed++
	}
	if t := g.tally; t.Failed+t.Config+t.Dead == g.Rules.FailMin || g.state.Load().Outage != nil {
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
func (g *Guard) Wait() time.Duration {
	if o := g.state.Load().Outage; o != nil {
		return max(0, o.Until.Sub(g.Now()))
	}
	return 0
}

// Hold asks, before a user who was refused as v tells is signed out, whether the provider is to be believed. It returns
// after everything this worker has counted is in the shared record. A reason means: not now.
func (g *Guard) Hold(ctx context.Context, v grant.Verdict) (reason string, err error) {
	done := make(chan error, 1)
	g.mu.Lock()
	g.waiters = append(g.waiters, done)
	g.mu.Unlock()
	g.wakeUp()
	select {
	case err := <-done:
		if err != nil {
			return "", err
		}
		return g.state.Load().Hold(v, g.Now(), g.Rules), nil
	case <-ctx.Done():
		return "", fmt.Errorf("ask the guard of %s: %w", g.Provider, context.Cause(ctx))
	}
}

// State is the shared record as last seen.
func (g *Guard) State() State { return *g.state.Load() }

// Run shares what is counted until ctx ends. Errors are logged, and what was counted is kept for the next try.
func (g *Guard) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	ramp := g.settle(ctx)
	for {
		change, err := g.share(ctx)
		if err != nil && ctx.Err() == nil {
			g.Logger.Warn("provider state not shared; kept for the next try", "provider", g.Provider, "error", err)
		}
		if change == Recovered {
			ramp = 1
		}
		ramp = g.ramp(ctx, ramp)
		select {
		case <-tick.C:
		case <-g.kick:
		case <-ctx.Done():
			g.answer(context.Cause(ctx))
			return nil
		}
	}
}

// settle puts the brake where the record says, after a restart in the middle of anything. It returns the ramp to go on
// with: 0 for none.
func (g *Guard) settle(ctx context.Context) int {
	s, _, err := Load(ctx, g.Bucket, g.Provider)
	if err != nil {
		return g.Concurrency
	}
	g.state.Store(&s)
	if s.Outage == nil {
		return g.Concurrency
	}
	if err := g.stop(ctx, s.Outage.Until); err != nil && ctx.Err() == nil {
		g.Logger.Warn("provider not paused again after the start", "provider", g.Provider, "error", err)
	}
	return 0
}

// ramp doubles the limit towards the full concurrency, a step a call.
func (g *Guard) ramp(ctx context.Context, n int) int {
	if n == 0 || g.state.Load().Outage != nil {
		return 0
	}
	if err := g.Brake.Limit(ctx, g.Provider, min(n, g.Concurrency)); err != nil {
		if ctx.Err() == nil {
			g.Logger.Warn("provider's concurrency not raised; tried again", "provider", g.Provider, "error", err)
		}
		return n
	}
	if n >= g.Concurrency {
		return 0
	}
	return 2 * n
}

// share adds what was counted to the record, and does what the change of it asks for.
func (g *Guard) share(ctx context.Context) (Change, error) {
	g.mu.Lock()
	tally, waiters := g.tally, g.waiters
	g.tally, g.waiters = Tally{}, nil
	g.mu.Unlock()
	change, err := g.write(ctx, tally)
	if err != nil {
		g.mu.Lock()
		g.tally = g.tally.add(tally)
		g.mu.Unlock()
	}
	for _, w := range waiters {
		w <- err
	}
	return change, err
}

func (g *Guard) answer(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, w := range g.waiters {
		w <- err
	}
	g.waiters = nil
}

// Load reads a provider's record: the zero State, and revision 0, if there is none.
func Load(ctx context.Context, bucket jetstream.KeyValue, provider string) (s State, revision uint64, err error) {
	entry, err := bucket.Get(ctx, provider)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return State{}, 0, nil
	}
	if err != nil {
		return State{}, 0, fmt.Errorf("read state of provider %s: %w", provider, err)
	}
	if err := json.Unmarshal(entry.Value(), &s); err != nil {
		return State{}, entry.Revision(), nil // of a later version, or damaged: start anew rather than stop
	}
	return s, entry.Revision(), nil
}

func (g *Guard) write(ctx context.Context, t Tally) (Change, error) {
	for {
		s, rev, err := Load(ctx, g.Bucket, g.Provider)
		if err != nil {
			return "", err
		}
		now := g.Now()
		next, change := s.Next(t, g.Settings, now, g.Rules)
		if t == (Tally{}) && change == "" && s.Settings == g.Settings {
			g.state.Store(&s)
			return "", nil
		}
		// The brake before the record: a worker that dies in between has paused the provider for a moment, no more.
		if change == Degraded || change == Extended {
			if err := g.stop(ctx, next.Outage.Until); err != nil {
				return "", err
			}
		}
		if err := g.put(ctx, next, rev); conflict(err) {
			continue
		} else if err != nil {
			return "", err
		}
		g.state.Store(&next)
		return change, g.tell(ctx, change, s, next)
	}
}

func (g *Guard) put(ctx context.Context, s State, rev uint64) error {
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if rev == 0 {
		_, err = g.Bucket.Create(ctx, g.Provider, raw)
	} else {
		_, err = g.Bucket.Update(ctx, g.Provider, raw, rev)
	}
	if err != nil && !conflict(err) {
		return fmt.Errorf("write state of provider %s: %w", g.Provider, err)
	}
	return err
}

// conflict reports whether another worker was faster. A replicated bucket says so in other words than a single one.
func conflict(err error) bool {
	return errors.Is(err, jetstream.ErrKeyExists) || errors.Is(err, jetstream.ErrKeyRevisionMismatch)
}

// stop lets nothing through before until, and one at a time after it.
func (g *Guard) stop(ctx context.Context, until time.Time) error {
	return errors.Join(g.Brake.Limit(ctx, g.Provider, 1), g.Brake.Pause(ctx, g.Provider, until))
}

// tell publishes what changed. The event's id is that of the outage, so that it is stored once however often it is tried.
func (g *Guard) tell(ctx context.Context, change Change, before, after State) error {
	var typ schema.Type
	outage := after.Outage
	switch change {
	case Degraded:
		typ = schema.ProviderDegraded
		g.Logger.Error("provider degraded: its renewals wait, nobody is signed out", "provider", g.Provider, "reason", outage.Reason,
			"until", outage.Until, "hint", Hint(outage.Reason))
	case Recovered:
		typ, outage = schema.ProviderRecovered, before.Outage
		g.Logger.Info("provider recovered", "provider", g.Provider, "reason", outage.Reason, "since", outage.Since)
	default:
		return nil
	}
	waiting, err := g.Brake.Waiting(ctx, g.Provider)
	if err != nil {
		waiting = 0 // the figure is a courtesy
	}
	data, err := json.Marshal(schema.ProviderState{Reason: outage.Reason, Since: outage.Since.UTC(), Waiting: waiting})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "renewd provider\x00%s\x00%s\x00%d", typ, g.Provider, outage.Since.UnixNano()))
	err = g.Brake.Publish(ctx, schema.Event{
		ID: base64.RawURLEncoding.EncodeToString(sum[:16]), Source: g.Source, Type: typ, Provider: g.Provider, Time: g.Now().UTC(), Data: data,
	})
	if err != nil {
		g.Logger.Error("provider event not published", "provider", g.Provider, "type", typ, "error", err)
	}
	return nil
}

// Hint says what to do about an outage for this reason.
func Hint(reason string) string {
	switch reason {
	case ReasonConfig:
		return "the provider refuses this client: check client_id, client_secret, client_auth and the URLs in renewd's settings"
	case ReasonMassFailure:
		return "most users are refused at once: is the client id right, was the provider's database restored? If they really all left, raise dead_share above 1 for this provider"
	default:
		return "is the provider reachable from here? It is tried again by itself"
	}
}
