package stream

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// The streams and buckets, before a prefix: schema.Subjects.Name adds it.
const (
	Logins   = "LOGINS"
	Requests = "REQUESTS"
	Renewals = "RENEWALS"
	Outcomes = "OUTCOMES"
	Parked   = "PARKED"

	BucketProviders = "renewd_providers" // one compare-and-swap key a provider, and the reconciler's lease
	BucketKeys      = "renewd_keys"      // public keys that logins are sealed to
	BucketGrants    = "renewd_grants"    // grants, where NATS KV is the store
)

// The durables on LOGINS and REQUESTS, and that on RENEWALS of the logins that were put off.
const (
	ConsumerLogin    = "login"
	ConsumerRequest  = "request"
	ConsumerDeferred = "login-deferred"
)

// renewPrefix starts the name of each provider's durable on RENEWALS.
const renewPrefix = "renew-"

// ConsumerRenew names the durable on RENEWALS of one provider.
func ConsumerRenew(provider string) string { return renewPrefix + provider }

// The subjects inside renewd, before a prefix. No service publishes to them.
const (
	timerSubject  = "renewal.timer"
	dueSubject    = "renewal.due"
	askedEnd      = ".asked" // after a due subject: due because of a command
	laterEnd      = ".later" // after a due subject: due because of a command that was put off
	parkedSubject = "parked"

	deferredSubject      = "deferred"
	deferredTimerSubject = deferredSubject + ".timer"
	deferredDueSubject   = deferredSubject + ".due"
)

const (
	ackWait         = 10 * time.Second // three beats of the runner
	commandMaxAge   = 7 * 24 * time.Hour
	commandMaxBytes = 64 << 10 // a login carries two tokens, which may be large JWTs
	commandInHand   = 1000     // over the whole cluster; workers fetch only what they have slots for
	// A login says all there is to say; requests differ in what they want, so some of each user are
	// kept until they are read.
	loginsKept, requestsKept = 1, 8
)

// Topology is everything renewd needs on a NATS server. The zero value of a field stands for its
// default; WithDefaults fills them in.
type Topology struct {
	Subjects schema.Subjects // carries the prefix, if any
	// Providers get a durable each on RENEWALS.
	Providers []Provider
	// Grants asks for the bucket of grants too: NATS KV is the store.
	Grants bool
	// Replicas of every stream: 1, or 3 on a cluster. Default 1.
	Replicas int
	// OutcomeMaxAge is how long the audit log reaches back. Default 400 days. user.synced lives
	// shorter: Config.SyncedTTL.
	OutcomeMaxAge time.Duration
	// Duplicates is the window in which a repeated event id is dropped. It costs memory: some 110
	// bytes an id. Default 2 min.
	Duplicates time.Duration
	// OutcomeBytes bounds OUTCOMES, CommandBytes each of LOGINS and REQUESTS, in bytes on disk and
	// for each replica. Default 0: no limit. See bound for what happens at a limit.
	OutcomeBytes, CommandBytes int64
}

// Provider is one identity provider's share of RENEWALS.
type Provider struct {
	ID string
	// Concurrency is how many of its renewals may be in hand over the whole cluster. Default 16.
	Concurrency int
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

// Validate names the first field that makes no sense. It expects the defaults to be filled in.
func (t Topology) Validate() error {
	switch {
	case t.Replicas != 1 && t.Replicas != 3:
		return fmt.Errorf("replicas: %d: want 1, or 3 on a cluster of three servers and more", t.Replicas)
	case t.OutcomeMaxAge < t.Duplicates:
		return fmt.Errorf("outcome_max_age: %v: want more than the duplicate window, %v", t.OutcomeMaxAge, t.Duplicates)
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

// Streams lists the streams that t wants, buckets included, with every field that Plan compares
// filled in as the server would.
func (t Topology) Streams() []jetstream.StreamConfig {
	streams := []jetstream.StreamConfig{
		t.commands(Logins, schema.UserLogin, loginsKept, "Logins, sealed. The newest of a user wins; each goes once it is processed."),
		t.commands(Requests, schema.UserRefreshDue, requestsKept, "Requests to renew. Of those that nobody looked at yet the newest of each user stay."),
		t.renewals(),
		t.outcomes(),
		t.parked(),
		t.bucket(BucketProviders, "Breaker, guard and permits of each provider; the reconciler's lease."),
		t.bucket(BucketKeys, "Public keys that logins are sealed to."),
	}
	if t.Grants {
		streams = append(streams, t.bucket(BucketGrants, "Grants, encrypted."))
	}
	return streams
}

// stream is the common part: on file, without limits.
func (t Topology) stream(base, why string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: t.Subjects.Name(base), Description: why, Storage: jetstream.FileStorage, Replicas: t.Replicas, Duplicates: t.Duplicates,
		Discard: jetstream.DiscardOld, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxMsgsPerSubject: -1, MaxConsumers: -1,
	}
}

// leastBytes is the smallest limit that makes sense: a few of the largest messages.
const leastBytes = 1 << 20

// bound limits the bytes of a stream, and says what goes when they are used up.
//
// Commands refuse what is new: its publisher gets an error and can try again. What was
// accepted must be answered, so it may not be dropped to make room. A command of a user whose
// earlier one still waits takes its place, also in a full stream, if it is no larger.
//
// Outcomes drop what is oldest. Refusing what is new would keep each renewal unfinished, and its
// message unacknowledged, until none of a provider's users is renewed any more. What is dropped is
// lost only to a subscriber that is a whole stream behind, and Depths tells long before.
//
// RENEWALS, PARKED and the buckets have no limit. They hold a few messages for each grant, and a
// timer, a rotated pair or a grant may neither be dropped nor refused.
func bound(s *jetstream.StreamConfig, bytes int64, full jetstream.DiscardPolicy) {
	if bytes > 0 {
		s.MaxBytes, s.Discard = bytes, full
	}
}

// commands takes everything below its type, malformed subjects too, so that they are rejected where
// an operator sees it. Of one user's the oldest goes when a newer one comes: the newest counts.
func (t Topology) commands(base string, of schema.Type, kept int64, why string) jetstream.StreamConfig {
	s := t.stream(base, why)
	s.Subjects = []string{t.Subjects.Commands(of, ""), t.Subjects.Commands(of, schema.AnySender)}
	s.Retention = jetstream.WorkQueuePolicy
	s.MaxMsgsPerSubject = kept // from each sender: none takes another's place
	s.MaxAge = commandMaxAge
	s.MaxMsgSize = commandMaxBytes
	s.Duplicates = min(t.Duplicates, s.MaxAge)
	bound(&s, t.CommandBytes, jetstream.DiscardNew)
	return s
}

// renewals has no limit of count, bytes, age or size on purpose: limits evict timers without a
// sign, and one whose firing was refused never fires again. Schedules switch rollups on, so one
// header of any writer could wipe the stream: only renewd may write here.
func (t Topology) renewals() jetstream.StreamConfig {
	s := t.stream(Renewals, "The engine: one message per live grant, waiting or due, and logins put off. Only renewd writes here.")
	for _, front := range []string{timerSubject, dueSubject, deferredTimerSubject, deferredDueSubject} {
		s.Subjects = append(s.Subjects, t.subject(front)+".*.*")
	}
	for _, end := range []string{askedEnd, laterEnd} {
		s.Subjects = append(s.Subjects, t.subject(dueSubject)+".*.*"+end)
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
	s := t.stream(Outcomes, "What became of each grant: the audit log, and what services subscribe to. Holds no token.")
	for _, of := range schema.Outcomes() {
		s.Subjects = append(s.Subjects, t.outcomeFilter(of))
	}
	s.MaxAge = t.OutcomeMaxAge
	s.AllowMsgTTL = true
	s.AllowDirect = true
	bound(&s, t.OutcomeBytes, jetstream.DiscardOld)
	return s
}

// outcomeFilter takes a rejected message's subject whatever its shape: it may have more tokens than
// a well-formed one.
func (t Topology) outcomeFilter(of schema.Type) string {
	return t.Subjects.Filter(of, "", "")
}

// parked is read by the worker that found the store down and by the next one, so it must not answer
// from a replica that lags: direct reads are off.
func (t Topology) parked() jetstream.StreamConfig {
	s := t.stream(Parked, "Rotated pairs, sealed, that the store would not take.")
	s.Subjects = []string{t.subject(parkedSubject) + ".*.*"}
	s.Retention = jetstream.WorkQueuePolicy
	s.MaxMsgsPerSubject = 1
	return s
}

// bucket is what jetstream.KeyValueConfig makes, but for AllowDirect, which that forces on: with it
// a read right after an acknowledged put may be answered by a replica that does not have it yet.
func (t Topology) bucket(base, why string) jetstream.StreamConfig {
	s := t.stream(base, why)
	bucket := s.Name
	s.Name = bucketStream(bucket)
	s.Subjects = []string{"$KV." + bucket + ".>"}
	s.MaxMsgsPerSubject = 1
	s.Discard = jetstream.DiscardNew
	s.AllowRollup = true
	s.DenyDelete = true
	return s
}

func bucketStream(bucket string) string { return "KV_" + bucket }

// subject puts the prefix before a subject inside renewd.
func (t Topology) subject(s string) string { return prefixed(t.Subjects, s) }

func prefixed(subjects schema.Subjects, s string) string {
	if p := subjects.Prefix(); p != "" {
		return p + "." + s
	}
	return s
}

// Consumer is a durable that t wants, and the stream it is on.
type Consumer struct {
	Stream string
	Config jetstream.ConsumerConfig
}

// Consumers lists the durables that t wants.
func (t Topology) Consumers() []Consumer {
	consumers := []Consumer{
		// All that the stream takes, with and without a sender.
		t.consumer(Logins, ConsumerLogin, "", commandInHand),
		t.consumer(Requests, ConsumerRequest, "", commandInHand),
		t.consumer(Renewals, ConsumerDeferred, t.subject(deferredDueSubject)+".>", commandInHand),
	}
	for _, p := range t.Providers {
		// The filter must never cover the timers: a consumer that receives a schedule cancels it by
		// its ack.
		consumers = append(consumers, t.consumer(Renewals, ConsumerRenew(p.ID), t.subject(dueSubject)+"."+p.ID+".>", p.Concurrency))
	}
	return consumers
}

// consumer never gives up on a message: one past its MaxDeliver would stay in a work queue,
// delivered to nobody, and hold its subject for ever.
func (t Topology) consumer(base, name, filter string, inHand int) Consumer {
	return Consumer{Stream: t.Subjects.Name(base), Config: jetstream.ConsumerConfig{
		Durable: name, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy, AckWait: ackWait, MaxDeliver: -1, MaxAckPending: inHand,
	}}
}

// Fronts are what the subjects inside renewd that name a user begin with, without a prefix; "*.*"
// begins filters for a user's outcomes.
func Fronts(subjects schema.Subjects) []string {
	return []string{
		timerSubject, dueSubject, parkedSubject, deferredTimerSubject, deferredDueSubject,
		"*.*", "$KV." + subjects.Name(BucketGrants),
	}
}

var errKey = errors.New("malformed renewal subject")

// parseRenewal is the inverse of Engine.due, asked and later. A user may be called like the end of
// a subject.
func parseRenewal(subjects schema.Subjects, subject string) (provider, user string, err error) {
	const parts = 2 // of a due subject, after its front
	if strings.Count(strings.TrimPrefix(subject, prefixed(subjects, dueSubject)+"."), ".") == parts {
		if due, asked := strings.CutSuffix(subject, askedEnd); asked {
			subject = due
		} else {
			subject = strings.TrimSuffix(subject, laterEnd)
		}
	}
	return parseUser(subjects, dueSubject, subject)
}

// parseUser is the inverse of Engine.user.
func parseUser(subjects schema.Subjects, front, subject string) (provider, user string, err error) {
	front = prefixed(subjects, front) + "."
	rest, ok := strings.CutPrefix(subject, front)
	provider, token, two := strings.Cut(rest, ".")
	if !ok || !two {
		return "", "", fmt.Errorf("%w: %q: want %s<provider>.<user>", errKey, subject, front)
	}
	if err := schema.CheckProvider(provider); err != nil {
		return "", "", err
	}
	user, err = schema.UnescapeUser(token)
	return provider, user, err
}
