package health

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

// Throttle slows a provider's consumer down, for all workers.
type Throttle interface {
	// Pause delivers no due renewal of the provider before until; a time that has passed resumes.
	Pause(ctx context.Context, provider string, until time.Time) error
	// Limit sets how many of the provider's renewals may be under way over all workers.
	Limit(ctx context.Context, provider string, inHand int) error
	// Waiting counts the provider's due renewals not taken up by a worker.
	Waiting(ctx context.Context, provider string) (int64, error)
	// Publish stores an outcome.
	Publish(ctx context.Context, e schema.Event) error
}

// Config is what a Guard stands on. All fields but Rules and Wake are required.
type Config struct {
	Provider    string
	Settings    string // fingerprint of the client id and endpoint in use
	Concurrency int    // the brake's limit in good times
	Rules       Rules
	Bucket      jetstream.KeyValue
	Brake       Throttle
	// Wake brings forward the grants that wait for the provider since before a time, and returns
	// how many. nil: they come in their own time.
	Wake   func(ctx context.Context, provider string, since time.Time) (int, error)
	Source string // CloudEvents source of provider events
	Now    func() time.Time
	Logger *slog.Logger
}

// Guard is one worker's view of one provider. Calls are counted in memory and written together,
// about once a second and when a verdict depends on the count.
type Guard struct {
	Config
	state atomic.Pointer[State]
	read  atomic.Bool // the state was read from the record
	known atomic.Bool // the record was looked at: read, or found unreadable by this version
	// when a token was last shown as the test of a doubt, in Unix nanoseconds
	tried atomic.Int64
	fresh atomic.Int64 // when another token was last shown in its turn
	kick  chan struct{}

	mu      sync.Mutex
	tally   Tally
	waiters []chan error
	sharing bool // a tally is on its way into the record
	trying  bool // a token was shown under untried settings, and its answer was not counted yet

	// Of Run alone.
	set        braking
	complaint  string
	complained time.Time
}

// braking is the throttle last set by this worker, and when.
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

// Report counts how a call ended: f is nil for a success. again says that this user was refused
// before. A Retry-After is remembered for all workers.
func (g *Guard) Report(f *grant.Fault, again bool) {
	t := tallied(f, again, g.Now())
	g.mu.Lock()
	g.tally = g.tally.add(t)
	g.trying = false
	sum := g.tally
	g.mu.Unlock()
	s := g.state.Load()
	waited := s.Outage != nil || s.Doubt != nil && !s.Doubt.Until.IsZero() || g.untried(*s)
	if waited || sum.bad()+sum.Dead == g.Rules.FailMin || t.Unknown+t.Config > 0 ||
		t.Throttled > 0 && sum.Throttled == throttles {
		g.wakeUp()
	}
}

func (g *Guard) wakeUp() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// pauseFor is how long a long pause is set for, at least, and twice at most.
const pauseFor = 5 * time.Minute

// Wait is how long to make no call for a user, with the tokens of a login at this time. 0: the
// profile may be asked for.
func (g *Guard) Wait(login time.Time) time.Duration {
	s, now := g.state.Load(), g.Now()
	switch until := s.quietUntil(); {
	case until.After(now):
		return min(until.Sub(now), longestTurn)
	case s.Doubt == nil || s.Doubt.Reason != ReasonMassFailure || login.After(s.Doubt.Since):
		return 0
	default:
		return max(0, min(s.Doubt.Until.Sub(now), longestTurn))
	}
}

// WaitToPresent is Wait for a refresh token; refused says that the provider refused this token
// before. A worker presents no token before it knows the shared record, which may say that the
// settings are new. While no user is renewed, each worker lets through one token at a time. A token
// that was not refused, and a token of a login newer than the trouble, need not wait as long.
func (g *Guard) WaitToPresent(login time.Time, refused bool) time.Duration {
	s, now := g.state.Load(), g.Now()
	d := s.Doubt
	switch until := s.quietUntil(); {
	case until.After(now):
		return min(until.Sub(now), longestTurn)
	case !g.known.Load():
		return time.Second
	case d != nil && d.Until.IsZero(),
		d != nil && d.Reason == ReasonMassFailure && login.After(d.Since):
		return 0
	case d != nil:
		return g.turn(*d, login, refused, now)
	case g.untried(*s) && !g.tries(now):
		return time.Second
	}
	return 0
}

// tries reports whether one more token may be shown under settings with which no user was renewed
// yet. The answer is yes once all workers know the result of the token before, or once no result
// has come for long.
func (g *Guard) tries(now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	pace := firstPace
	if g.trying || g.sharing || g.tally != (Tally{}) {
		pace = unheard
	}
	if !next(&g.fresh, now, time.Time{}, pace) {
		return false
	}
	g.trying = true
	return true
}

// quietUntil is until when the provider is not called at all.
func (s State) quietUntil() time.Time {
	switch {
	case s.Paused != nil:
		return s.Paused.end()
	case s.Outage != nil:
		return s.Outage.Until
	}
	return time.Time{}
}

// untried reports whether no user was renewed with these settings yet. Tokens are then shown one
// after the other: a provider that refuses our settings may spend each token.
func (g *Guard) untried(s State) bool { return g.read.Load() && s.ProvenAt.IsZero() }

const (
	// firstPace is the time between two presentations of one worker under settings with which no
	// user was renewed yet.
	firstPace = 250 * time.Millisecond
	// unheard is this time where the token before was not answered, or not shown after all.
	unheard = 5 * time.Second
	// longestTurn bounds how long renewals are put off at a time, and so how long after the end of
	// a pause, an outage or a doubt the last renewal goes on. There are many renewals, and each
	// putting off costs a message.
	longestTurn = 5 * time.Minute
	// answerLost is the age from which on a try has no answer any more.
	answerLost = 30 * time.Second
)

// turn is how long a presentation waits while no user is renewed: 0 for one at a time, of each
// worker. Where users are refused, tokens that were never refused have turns of their own. In known
// words a refusal spends no token, so these turns are OpenMax apart at most: the first user who is
// well ends the wait of all. All other presentations wait as long again as the doubt has lasted.
func (g *Guard) turn(d Doubt, login time.Time, refused bool, now time.Time) time.Duration {
	pace := min(d.interval(g.Rules), longestTurn)
	if login.After(d.Since) {
		pace = min(pace, g.Rules.Release)
	}
	if d.Reason == ReasonMassFailure {
		pace = min(pace, g.Rules.OpenMax)
	}
	better := !refused && (d.Reason == ReasonUnknown || d.Reason == ReasonMassFailure)
	switch {
	case better && next(&g.fresh, now, time.Time{}, pace):
		return 0
	case better:
		return max(time.Unix(0, g.fresh.Load()).Add(pace).Sub(now), time.Second)
	case !now.Before(d.Until) && next(&g.tried, now, d.Until, answerLost):
		return 0
	}
	return max(min(d.Until.Sub(now), longestTurn), min(now.Sub(d.Since), longestTurn), time.Second)
}

// next takes the next try of this worker, if it made no try after since or if its last try is older
// than pace.
func next(tried *atomic.Int64, now, since time.Time, pace time.Duration) bool {
	last := tried.Load()
	ago := now.Sub(time.Unix(0, last))
	over := !since.IsZero() && last < since.UnixNano() || ago < 0 || ago >= pace
	return over && tried.CompareAndSwap(last, now.UnixNano())
}

// Renewing reports whether a user was renewed lately.
func (g *Guard) Renewing() bool { return g.state.Load().renewed(g.Now().Add(-g.Rules.Window)) }

// Withhold asks whether to believe the provider, before a user refused as v tells is signed out. It
// returns once everything counted by this worker is in the shared record. A reason means: not now.
func (g *Guard) Withhold(ctx context.Context, v grant.Verdict) (reason string, err error) {
	done := make(chan error, 1)
	g.mu.Lock()
	g.waiters = append(g.waiters, done)
	g.mu.Unlock()
	g.wakeUp()
	select {
	case err := <-done:
		switch {
		case errors.Is(err, ErrRecord):
			// this version cannot read the record; asking again soon changes nothing
			return schema.ReasonUnproven, nil
		case err != nil:
			return "", err
		}
		return g.state.Load().Withhold(v, g.Now(), g.Rules), nil
	case <-ctx.Done():
		return "", fmt.Errorf("ask the guard of %s: %w", g.Provider, context.Cause(ctx))
	}
}

// State is the shared record as last seen.
func (g *Guard) State() State { return *g.state.Load() }

// Run shares the counts, sets the brake and tells untold events, until ctx ends. Errors are logged,
// and failed steps are tried again.
func (g *Guard) Run(ctx context.Context) error {
	var waker sync.WaitGroup
	defer waker.Wait()
	waker.Go(func() { g.wakeAll(ctx) })
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

// round is one look at the record. Sharing, braking and telling do not depend on one another: each
// follows from the record.
func (g *Guard) round(ctx context.Context) {
	err := errors.Join(g.share(ctx), g.brake(ctx), g.tell(ctx))
	if err == nil {
		g.complaint, g.complained = "", time.Time{}
		return
	}
	if again := err.Error() == g.complaint &&
		g.Now().Sub(g.complained) < time.Minute; again || ctx.Err() != nil {
		return
	}
	g.complaint, g.complained = err.Error(), g.Now()
	g.Logger.Warn("provider state not kept up; tried again each second", "provider", g.Provider,
		"error", err)
}

// share adds the counts to the record.
func (g *Guard) share(ctx context.Context) error {
	g.mu.Lock()
	tally, waiters := g.tally, g.waiters
	g.tally, g.waiters, g.sharing = Tally{}, nil, true
	g.mu.Unlock()
	err := g.change(ctx, func(s State) State { return s.Next(tally, g.Settings, g.Now(), g.Rules) })
	if err == nil || errors.Is(err, ErrRecord) {
		g.known.Store(true)
	}
	g.mu.Lock()
	g.sharing = false
	if err != nil {
		g.tally = g.tally.add(tally)
	}
	g.mu.Unlock()
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

// brake sets the throttle that follows from the record: at each change of the record, and each
// minute in case another worker set the throttle by an older record.
func (g *Guard) brake(ctx context.Context) error {
	if !g.read.Load() {
		return nil
	}
	s, now := g.state.Load(), g.Now()
	want := braking{s.Limit(now, g.Concurrency), s.PausedUntil(now), now}
	if most := now.Truncate(pauseFor).Add(2 * pauseFor); want.until.After(most) {
		// renewed in time; a record that is lost must not stop the provider forever
		want.until = most
	}
	if want.limit == g.set.limit && want.until.Equal(g.set.until) &&
		now.Sub(g.set.at) < time.Minute {
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
