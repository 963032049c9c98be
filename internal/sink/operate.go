package sink

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/lease"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Standing is how a sink stands, as commands show it.
type Standing struct {
	Name string `json:"name"`
	// State is Live, Paused, Disabled, "down" (the target as a whole fails), or "idle" (no process
	// runs the sink).
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	By    string    `json:"by,omitempty"`
	// Reason is why the sink does not deliver, or the last failure.
	Reason string    `json:"reason,omitempty"`
	FailAt time.Time `json:"failed_at,omitzero"`
	// LagSeconds is the age of the oldest undelivered outcome.
	LagSeconds float64 `json:"lag_seconds"`
	// Queued is how many outcomes are in the stream and not handled yet. Waiting is how many
	// failed, or wait behind a failed outcome of the same user. Dead is how many renewd gave up.
	Queued      uint64    `json:"queued"`
	Waiting     int       `json:"waiting"`
	Dead        int       `json:"dead"`
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
	Host        string    `json:"host,omitempty"` // of the process that runs the sink
}

// Look returns how a sink stands at now.
func (b Bucket) Look(ctx context.Context, outcomes jetstream.Stream, name string,
	now time.Time) (Standing, error) {
	s := Standing{Name: name, State: Live}
	state, err := bucket.Get[State](ctx, b.kv, keyState+name)
	if err != nil {
		return s, err
	}
	status, err := bucket.Get[Status](ctx, b.kv, keyStatus+name)
	if err != nil {
		return s, err
	}
	held, err := bucket.Get[lease.Record](ctx, b.kv, keyLease+name)
	if err != nil {
		return s, err
	}
	waits, err := bucket.All[waiting](ctx, b.kv, keyWait+name+".")
	if err != nil {
		return s, err
	}
	for _, w := range waits {
		s.Waiting += len(w.Value.Sequences)
	}
	dead, err := bucket.All[Letter](ctx, b.kv, keyDead+name+".")
	if err != nil {
		return s, err
	}
	s.Dead = len(dead)
	c, err := outcomes.Consumer(ctx, topology.ConsumerSink(name))
	switch {
	case err == nil:
		s.Queued = c.CachedInfo().NumPending + uint64(c.CachedInfo().NumAckPending)
	case !errors.Is(err, jetstream.ErrConsumerNotFound):
		return s, err
	}
	of := status.Value
	s.DeliveredAt, s.Host = of.DeliveredAt, held.Value.Host
	s.Reason, s.FailAt = of.Error, of.ErrorAt
	if !of.Oldest.IsZero() && s.Queued+uint64(s.Waiting) > 0 {
		s.LagSeconds = max(0, now.Sub(of.Oldest).Seconds())
	}
	switch {
	case state.Value.stopped():
		s.State, s.Since, s.By = state.Value.State, state.Value.Since, state.Value.By
		s.Reason = state.Value.Reason
	case !now.Before(held.Value.Until):
		s.State, s.Since, s.Host = "idle", of.At, ""
	case !of.DownSince.IsZero():
		s.State, s.Since = "down", of.DownSince
	}
	return s, nil
}

// Letters are a sink's dead letters, in the order of the stream.
func (b Bucket) Letters(ctx context.Context, name string) (letters []Letter, err error) {
	found, err := bucket.All[Letter](ctx, b.kv, keyDead+name+".")
	for _, e := range found {
		letters = append(letters, e.Value)
	}
	slices.SortFunc(letters, func(x, y Letter) int { return cmp.Compare(x.Sequence, y.Sequence) })
	return letters, err
}

// Waits describes the waiting outcomes of one user at a sink.
type Waits struct {
	Provider string    `json:"provider,omitempty"`
	User     string    `json:"user,omitempty"`
	Outcomes int       `json:"outcomes"` // the first failed, the rest wait behind it
	Tries    int       `json:"tries"`
	Next     time.Time `json:"next"`
	Error    string    `json:"error"`
}

// Waiting lists the users whose outcomes wait at a sink, next tried first.
func (b Bucket) Waiting(ctx context.Context, name string) (waits []Waits, err error) {
	found, err := bucket.All[waiting](ctx, b.kv, keyWait+name+".")
	for _, e := range found {
		provider, user, _ := strings.Cut(strings.TrimPrefix(e.Key, keyWait+name+"."), ".")
		id, _ := schema.UnescapeUser(user) // nobody stands for no id
		w := Waits{Outcomes: len(e.Value.Sequences), Tries: e.Value.Tries, Next: e.Value.Next,
			Error: e.Value.Error, User: id}
		if provider != nobody {
			w.Provider = provider
		}
		waits = append(waits, w)
	}
	slices.SortFunc(waits, func(x, y Waits) int { return x.Next.Compare(y.Next) })
	return waits, err
}

// SetState pauses a sink, or has the sink go on.
func (b Bucket) SetState(ctx context.Context, name string, s State) error {
	return bucket.Set(ctx, b.kv, keyState+name, s)
}

// StateOf is whether a sink delivers.
func (b Bucket) StateOf(ctx context.Context, name string) (State, error) {
	e, err := bucket.Get[State](ctx, b.kv, keyState+name)
	if e.Value.State == "" {
		e.Value.State = Live
	}
	return e.Value, err
}

// orderPatience is how long the sender of an operator's order waits for its execution.
const orderPatience = 10 * time.Second

// ErrOrdered: an order is stored, and no process has carried it out yet. The next process that runs
// the sink will.
var ErrOrdered = errors.New("no renewd has done it yet: it is done as soon as one runs the sink")

// Retry has a sink's dead letters delivered again, only those of one user if e names a user, and
// tries waiting outcomes at once. Retry returns nil once the sink has begun, or ErrOrdered.
func (b Bucket) Retry(ctx context.Context, name string, e schema.Event) error {
	o := order{Retry: true}
	if e.User != "" {
		o.About = about(e)
	}
	return b.order(ctx, name, o)
}

// Replay has all outcomes since then delivered again. Replay returns nil once the sink has begun,
// or ErrOrdered.
func (b Bucket) Replay(ctx context.Context, name string, since time.Time) error {
	return b.order(ctx, name, order{Replay: since.UTC()})
}

func (b Bucket) order(ctx context.Context, name string, o order) error {
	key := keyOrder + name + "." + nuid.Next()
	if err := bucket.Set(ctx, b.kv, key, o); err != nil {
		return err
	}
	deadline := time.Now().Add(orderPatience)
	for {
		e, err := bucket.Get[order](ctx, b.kv, key)
		switch {
		case err != nil:
			return err
		case e.Revision == 0:
			return nil
		case time.Now().After(deadline):
			return ErrOrdered
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrOrdered, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// ToldOf is the last sign-out of a user that a sink's receiver acknowledged, or that was withheld;
// nil: no sign-out.
func (b Bucket) ToldOf(ctx context.Context, name, provider, user string) (*Told, error) {
	e, err := bucket.Get[Told](ctx, b.kv, keyTold+name+"."+about(schema.Event{Provider: provider,
		User: user}))
	if err != nil || e.Revision == 0 {
		return nil, err
	}
	return &e.Value, nil
}
