package sink

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// The keys of the bucket of sinks begin with the kind of the value, and then the sink's name. In
// keys about a user, provider and user follow, so that an erasure finds the key
// (stream.Engine.Erase).
const (
	keyLease  = "lease."
	keyState  = "state."
	keyStatus = "status."
	keyPlace  = "place."
	keyOrder  = "order."
	keyWait   = "wait."
	keyDead   = "dead."
	keyTold   = "told."
)

// Bucket is the stored state of sinks. A Bucket is safe for concurrent use.
type Bucket struct {
	kv     jetstream.KeyValue
	stream jetstream.Stream // the bucket's own
}

// OpenBucket opens the bucket of sinks, which is there once a sink is in the settings.
func OpenBucket(ctx context.Context, js jetstream.JetStream, subjects schema.Subjects) (Bucket,
	error) {
	name := subjects.Name(topology.BucketSinks)
	kv, err := bucket.Open(ctx, js, name)
	if err != nil {
		return Bucket{}, err
	}
	s, err := js.Stream(ctx, topology.BucketStream(name))
	if err != nil {
		return Bucket{}, fmt.Errorf("open bucket %s: %w", name, err)
	}
	return Bucket{kv, s}, nil
}

// nobody stands in keys for the provider, or the user, when the outcome is about no provider or no
// user. No escaped id looks like nobody.
const nobody = "="

// about is the part of a key that says whom an outcome is about.
func about(e schema.Event) string {
	provider, user := e.Provider, nobody
	if provider == "" {
		provider = nobody
	}
	if e.User != "" {
		user = schema.EscapeUser(e.User)
	}
	return provider + "." + user
}

// remove takes a value away, up to this revision.
func (b Bucket) remove(ctx context.Context, key string, revision uint64) error {
	return bucket.Remove(ctx, b.stream, key, revision)
}

// State is whether a sink delivers.
type State struct {
	State  string    `json:"state"`            // Live, Paused or Disabled
	By     string    `json:"by,omitempty"`     // the operator who paused the sink
	Reason string    `json:"reason,omitempty"` // why, in words
	Since  time.Time `json:"since,omitzero"`
}

// The states. A disabled sink was stopped by renewd itself, for good reason, and waits for an
// operator. In each state, outcomes stay in the stream as long as outcomes are kept.
const (
	Live     = "live"
	Paused   = "paused"
	Disabled = "disabled"
)

func (s State) stopped() bool { return s.State == Paused || s.State == Disabled }

// Status is the report on a sink by the process that runs the sink, each few seconds.
type Status struct {
	At   time.Time `json:"at"`
	Host string    `json:"host,omitempty"`
	// DownSince: the target as a whole fails since then, and Error says how. Zero: the target
	// works.
	DownSince time.Time `json:"down_since,omitzero"`
	Error     string    `json:"error,omitempty"` // the last error
	ErrorAt   time.Time `json:"error_at,omitzero"`
	// DeliveredAt is when the last outcome was delivered.
	DeliveredAt time.Time `json:"delivered_at,omitzero"`
	// Oldest is when the oldest undelivered outcome was stored; zero: all outcomes are delivered.
	Oldest time.Time `json:"oldest,omitzero"`
}

// Told is the proof that a sink's receiver has acknowledged a sign-out, or why it will not.
type Told struct {
	ID       string      `json:"id"` // of the outcome
	Type     schema.Type `json:"type"`
	Sequence uint64      `json:"sequence"` // in the stream of outcomes
	At       time.Time   `json:"at"`       // when the receiver acknowledged the sign-out
	// Withheld: the target kept the sign-out from its receiver, at At.
	Withheld bool `json:"withheld,omitempty"`
	// Version is of the newest outcome that a Once took.
	Version int64 `json:"version,omitempty"`
}

// Letter is an outcome that could not be delivered.
type Letter struct {
	Sequence uint64      `json:"sequence"` // in the stream of outcomes
	ID       string      `json:"id"`
	Type     schema.Type `json:"type"`
	Provider string      `json:"provider,omitempty"`
	User     string      `json:"user,omitempty"`
	Tries    int         `json:"tries"`
	Error    string      `json:"error"` // of the last try
	At       time.Time   `json:"at"`    // when renewd gave the outcome up
}

// order is an operator's order to the process that runs a sink.
type order struct {
	// Retry: dead letters are delivered again, only those of About unless About is empty, and
	// waiting outcomes are tried at once.
	Retry bool   `json:"retry,omitempty"`
	About string `json:"about,omitempty"`
	// Replay: all outcomes since then are delivered again.
	Replay time.Time `json:"replay,omitzero"`
}

// sequenced is n as a part of a key.
func sequenced(n uint64) string { return fmt.Sprintf("%020d", n) }
