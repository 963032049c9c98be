package topology

import (
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// The streams and buckets, before a prefix: schema.Subjects.Name adds the prefix. Services meet the
// streams and buckets with a name from schema.
const (
	Logins   = schema.StreamLogins
	Requests = schema.StreamRequests
	Renewals = "RENEWALS"
	Outcomes = schema.StreamOutcomes
	Parked   = "PARKED"

	// a compare-and-swap key for each provider, and the reconciler's lease
	BucketProviders = "renewd_providers"
	BucketKeys      = schema.BucketKeys // public keys for sealing logins
	// services that use renewd over HTTP: rights, and digests of secrets
	BucketClients = "renewd_clients"
	BucketGrants  = "renewd_grants" // grants, where NATS KV is the store
	BucketSinks   = "renewd_sinks"  // waiting outcomes and the runner of each sink
	// of each source: figures, owed erasures, marks of the rows of a table
	BucketSources = "renewd_sources"
	BucketSeen    = "renewd_seen" // ids of messages taken by sources
)

// SeenAge is how long a source remembers a message it has taken. An older message is believed only
// if its sender signed it again.
const SeenAge = 25 * time.Hour

// The durables on LOGINS and REQUESTS, and the durable on RENEWALS for logins put off.
const (
	ConsumerLogin    = "login"
	ConsumerRequest  = "request"
	ConsumerDeferred = "login-deferred"
)

// RenewPrefix starts the name of each provider's durable on RENEWALS.
const RenewPrefix = "renew-"

// ConsumerRenew names a provider's durable on RENEWALS.
func ConsumerRenew(provider string) string { return RenewPrefix + provider }

// SinkPrefix starts the name of each sink's durable on OUTCOMES.
const SinkPrefix = "sink-"

// ConsumerSink names a sink's durable on OUTCOMES.
func ConsumerSink(name string) string { return SinkPrefix + name }

const (
	ackWait         = 10 * time.Second // three beats of the runner
	commandMaxAge   = 7 * 24 * time.Hour
	commandMaxBytes = 64 << 10 // a login carries two tokens, which may be large JWTs
	// over the whole cluster; workers fetch only as many messages as they have free slots
	commandInHand = 1000
	// commandsKept is how many commands of one type of a user are kept from each sender until they
	// are read. The newest login need not be a good one, and requests differ in their wants.
	commandsKept = 8
)

// Topology is everything renewd needs on a NATS server. The zero value of a field stands for its
// default; WithDefaults fills them in.
type Topology struct {
	Subjects schema.Subjects // carries the prefix, if any
	// Providers get a durable each on RENEWALS.
	Providers []Provider
	// Sinks get a durable each on OUTCOMES, and a bucket together.
	Sinks []Sink
	// Sources asks for the buckets of sources too.
	Sources bool
	// Grants asks for the bucket of grants too: NATS KV is the store.
	Grants bool
	// Replicas of every stream: 1, or 3 on a cluster. Default 1.
	Replicas int
	// OutcomeMaxAge is how long the audit log reaches back. Default 400 days. user.synced lives
	// shorter: stream.Config.SyncedTTL.
	OutcomeMaxAge time.Duration
	// Duplicates is the window in which a repeated event id is dropped. The window costs memory:
	// some 110 bytes an id. Default 2 min.
	Duplicates time.Duration
	// OutcomeBytes bounds OUTCOMES, CommandBytes each of LOGINS and REQUESTS, in bytes on disk and
	// for each replica. Default 0: no limit. See bound for what happens at a limit.
	OutcomeBytes, CommandBytes int64
}

// Provider is one identity provider's share of RENEWALS.
type Provider struct {
	ID string
	// Concurrency is how many of its renewals may be handled at a time over the whole cluster.
	// Default 16.
	Concurrency int
}

// Sink is a place outside to which outcomes are taken.
type Sink struct {
	Name string
	// Types and Providers narrow down the sink's outcomes. Empty: all.
	Types     []schema.Type
	Providers []string
	// InHand is how many of its outcomes may be handled at a time. Default 1.
	InHand int
}

// WithDefaults returns t with every zero field set to its default.
func (t Topology) WithDefaults() Topology {
	if t.Replicas == 0 {
		t.Replicas = 1
	}
	if t.OutcomeMaxAge == 0 {
		t.OutcomeMaxAge = 400 * 24 * time.Hour
	}
	if t.Duplicates == 0 {
		t.Duplicates = 2 * time.Minute
	}
	providers := make([]Provider, len(t.Providers))
	for i, p := range t.Providers {
		if p.Concurrency == 0 {
			p.Concurrency = 16
		}
		providers[i] = p
	}
	t.Providers = providers
	return t
}

// Validate names the first field that makes no sense. Call WithDefaults before.
func (t Topology) Validate() error {
	switch {
	case t.Replicas != 1 && t.Replicas != 3:
		return fmt.Errorf("replicas: %d: want 1, or 3 on a cluster of three servers and more",
			t.Replicas)
	case t.OutcomeMaxAge < t.Duplicates:
		return fmt.Errorf("outcome_max_age: %v: want more than the duplicate window, %v",
			t.OutcomeMaxAge, t.Duplicates)
	case t.Duplicates < 100*time.Millisecond:
		return fmt.Errorf("duplicates: %v: want 100ms or more", t.Duplicates)
	case t.OutcomeBytes < 0 || t.OutcomeBytes > 0 && t.OutcomeBytes < leastBytes:
		return fmt.Errorf("outcome_bytes: %d: want %d or more, or none", t.OutcomeBytes, leastBytes)
	case t.CommandBytes < 0 || t.CommandBytes > 0 && t.CommandBytes < leastBytes:
		return fmt.Errorf("command_bytes: %d: want %d or more, or none", t.CommandBytes, leastBytes)
	}
	seen := map[string]bool{}
	for i, p := range t.Providers {
		if err := schema.CheckProvider(p.ID); err != nil {
			return fmt.Errorf("providers[%d]: %w", i, err)
		}
		if seen[p.ID] {
			return fmt.Errorf("providers[%d]: %q is there twice", i, p.ID)
		}
		if p.Concurrency < 1 {
			return fmt.Errorf("providers[%d].concurrency: %d: want 1 or more", i, p.Concurrency)
		}
		seen[p.ID] = true
	}
	return nil
}

// Streams lists the streams of t, buckets included, with every field that Plan compares filled in
// as the server would.
func (t Topology) Streams() []jetstream.StreamConfig {
	streams := []jetstream.StreamConfig{
		t.commands(Logins,
			"Logins, sealed, and logouts. Of those that nobody looked at yet the newest of each "+
				"user stay; each goes once it is processed.",
			InLogins()...),
		t.commands(Requests,
			"Requests to renew. Of those that nobody looked at yet the newest of each user stay.",
			schema.UserRefreshDue),
		t.renewals(),
		t.outcomes(),
		t.parked(),
		t.bucket(BucketProviders,
			"Breaker, guard and permits of each provider; the reconciler's lease."),
		t.bucket(BucketKeys, "Public keys that logins are sealed to."),
		t.bucket(BucketClients, "Services that use renewd over HTTP."),
	}
	if t.Grants {
		streams = append(streams, t.bucket(BucketGrants, "Grants, encrypted."))
	}
	if len(t.Sinks) > 0 {
		streams = append(streams, t.bucket(BucketSinks,
			"Of each sink: who runs it, what waits, what was not delivered."))
	}
	if t.Sources {
		seen := t.bucket(BucketSeen, "Digests of the ids of messages that sources have taken.")
		seen.MaxAge = SeenAge
		streams = append(streams, seen, t.bucket(BucketSources,
			"Of each source: its messages, the erasures that are owed, what was taken."))
	}
	return streams
}

// stream is the common part: on file, without limits.
func (t Topology) stream(base, why string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              t.Subjects.Name(base),
		Description:       why,
		Storage:           jetstream.FileStorage,
		Replicas:          t.Replicas,
		Duplicates:        t.Duplicates,
		Discard:           jetstream.DiscardOld,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        -1,
		MaxMsgsPerSubject: -1,
		MaxConsumers:      -1,
	}
}

// leastBytes is the smallest useful limit: a few of the largest messages.
const leastBytes = 1 << 20

// bound limits the bytes of a stream, and says which messages go when the limit is reached.
//
// Streams of commands refuse a new message: its publisher gets an error and can try again. An
// accepted command must be answered, so it may not be dropped to make room.
//
// OUTCOMES drops its oldest messages. Refusing a new outcome would keep each renewal unfinished,
// and its message unacknowledged, until no user of a provider is renewed any more. A dropped
// outcome is lost only to a subscriber that is a whole stream behind, and stream.Engine.Depths
// tells long before.
//
// RENEWALS, PARKED and the buckets have no limit. They hold a few messages for each grant, and a
// timer, a rotated pair or a grant may neither be dropped nor refused.
func bound(s *jetstream.StreamConfig, bytes int64, full jetstream.DiscardPolicy) {
	if bytes > 0 {
		s.MaxBytes, s.Discard = bytes, full
	}
}

// commands takes everything below its types, malformed subjects included, so that such commands are
// rejected where an operator sees it. When more than commandsKept commands of a user wait, the
// oldest goes: the newest count.
func (t Topology) commands(base, why string, types ...schema.Type) jetstream.StreamConfig {
	s := t.stream(base, why)
	for _, of := range types {
		s.Subjects = append(s.Subjects, t.Subjects.Commands(of, ""),
			t.Subjects.Commands(of, schema.AnySender))
	}
	s.Retention = jetstream.WorkQueuePolicy
	s.MaxMsgsPerSubject = commandsKept // from each sender: no sender takes another's place
	s.MaxAge = commandMaxAge
	s.MaxMsgSize = commandMaxBytes
	s.Duplicates = min(t.Duplicates, s.MaxAge)
	bound(&s, t.CommandBytes, jetstream.DiscardNew)
	return s
}

// renewals has no limit of count, bytes, age or size on purpose: limits evict timers without a
// sign, and a timer whose firing was refused never fires again. Schedules switch rollups on, so one
// header of any writer could wipe the stream. Hence only renewd may write here.
func (t Topology) renewals() jetstream.StreamConfig {
	s := t.stream(Renewals,
		"The engine: one message per live grant, waiting or due, and logins put off. Only renewd "+
			"writes here.")
	for _, front := range []string{TimerFront, DueFront, DeferredTimerFront, DeferredDueFront} {
		s.Subjects = append(s.Subjects, t.subject(front)+".*.*")
	}
	for _, end := range []string{AskedEnd, LaterEnd} {
		s.Subjects = append(s.Subjects, t.subject(DueFront)+".*.*"+end)
	}
	for _, end := range []string{LogoutEnd, SuspendEnd, ResumeEnd} {
		for _, front := range []string{DeferredTimerFront, DeferredDueFront} {
			s.Subjects = append(s.Subjects, t.subject(front)+".*.*"+end)
		}
	}
	s.Retention = jetstream.WorkQueuePolicy
	s.MaxMsgsPerSubject = 1
	s.AllowMsgSchedules = true
	s.AllowRollup = true
	return s
}

// outcomes is the audit log. Messages may live shorter than the stream (AllowMsgTTL); an erasure
// purges a user's subjects.
func (t Topology) outcomes() jetstream.StreamConfig {
	s := t.stream(Outcomes,
		"What became of each grant: the audit log, and what services subscribe to. Holds no token.")
	for _, of := range schema.Outcomes() {
		s.Subjects = append(s.Subjects, t.outcomeFilter(of))
	}
	s.MaxAge = t.OutcomeMaxAge
	s.AllowMsgTTL = true
	s.AllowDirect = true
	bound(&s, t.OutcomeBytes, jetstream.DiscardOld)
	return s
}

// outcomeFilter takes a rejected message's subject whatever its shape: a malformed subject may have
// more tokens than a well-formed one.
func (t Topology) outcomeFilter(of schema.Type) string {
	return t.Subjects.Filter(of, "", "")
}

// parked is read by the worker that found the store down and by the next worker. A lagging replica
// must not answer, so direct reads are off.
func (t Topology) parked() jetstream.StreamConfig {
	s := t.stream(Parked, "Rotated pairs, sealed, that the store would not take.")
	s.Subjects = []string{t.subject(ParkedFront) + ".*.*"}
	s.Retention = jetstream.WorkQueuePolicy
	s.MaxMsgsPerSubject = 1
	return s
}

// bucket is the configuration of jetstream.KeyValueConfig, but for AllowDirect, which
// KeyValueConfig forces on. With AllowDirect a read right after an acknowledged put may be answered
// by a replica that lacks the new value.
func (t Topology) bucket(base, why string) jetstream.StreamConfig {
	s := t.stream(base, why)
	bucket := s.Name
	s.Name = BucketStream(bucket)
	s.Subjects = []string{"$KV." + bucket + ".>"}
	s.MaxMsgsPerSubject = 1
	s.Discard = jetstream.DiscardNew
	s.AllowRollup = true
	s.DenyDelete = true
	return s
}

// Consumer is a durable of t, with its stream.
type Consumer struct {
	Stream string
	Config jetstream.ConsumerConfig
}

// Consumers lists the durables of t.
func (t Topology) Consumers() []Consumer {
	consumers := []Consumer{
		// All subjects of the stream, with and without a sender.
		t.consumer(Logins, ConsumerLogin, "", commandInHand),
		t.consumer(Requests, ConsumerRequest, "", commandInHand),
		t.consumer(Renewals, ConsumerDeferred, t.subject(DeferredDueFront)+".>", commandInHand),
	}
	for _, p := range t.Providers {
		// The filter must never cover the timers: a consumer that receives a schedule cancels the
		// schedule by its ack.
		consumers = append(consumers, t.consumer(Renewals, ConsumerRenew(p.ID),
			t.subject(DueFront)+"."+p.ID+".>", p.Concurrency))
	}
	for _, s := range t.Sinks {
		consumers = append(consumers, t.sink(s))
	}
	return consumers
}

// sinkAckWait is longer than a renewal's: thousands of outcomes may wait in one process for a sink
// that is down, each with its heartbeats.
const sinkAckWait = 30 * time.Second

// sink begins with outcomes published from now on. A replay brings the past.
func (t Topology) sink(s Sink) Consumer {
	c := t.consumer(Outcomes, ConsumerSink(s.Name), "", max(1, s.InHand))
	c.Config.AckWait = sinkAckWait
	c.Config.DeliverPolicy = jetstream.DeliverNewPolicy
	c.Config.FilterSubjects = t.SinkFilters(s)
	return c
}

// SinkFilters are the subjects of a sink's outcomes; empty: all subjects of the stream.
func (t Topology) SinkFilters(s Sink) []string {
	types := s.Types
	switch {
	case len(types) == 0 && len(s.Providers) == 0:
		return nil
	case len(types) == 0:
		types = schema.Outcomes()
	}
	providers := s.Providers
	if len(providers) == 0 {
		providers = []string{""}
	}
	var filters []string
	for _, of := range types {
		for _, provider := range providers {
			if of == schema.OperatorActed && provider != "" {
				continue // this event is about no provider
			}
			filters = append(filters, t.Subjects.Filter(of, provider, ""))
		}
	}
	slices.Sort(filters)
	return slices.Compact(filters)
}

// consumer never gives up on a message: a message past its MaxDeliver would stay in a work queue,
// delivered to no worker, and hold its subject forever.
func (t Topology) consumer(base, name, filter string, inHand int) Consumer {
	return Consumer{Stream: t.Subjects.Name(base), Config: jetstream.ConsumerConfig{
		Durable:       name,
		FilterSubject: filter,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxDeliver:    -1,
		MaxAckPending: inHand,
	}}
}
