package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// NewestLogin is the place of the newest login accepted so far, of any user. A login after this
// place is newer than anything done now.
func (e *Engine) NewestLogin(ctx context.Context) (grant.Position, error) {
	name := e.config.Subjects.Name(topology.Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return grant.Position{}, fmt.Errorf("stream %s: %w", name, err)
	}
	info := s.CachedInfo()
	return grant.Position{
		Stream:   info.Created.UTC(),
		Sequence: info.State.LastSeq,
		Time:     info.State.LastTime.UTC(),
	}, nil
}

// Erase removes everything about the user at this provider from the streams: commands, timer,
// logins put off, parked pair, outcomes, and the mark left in the bucket of grants by the removal
// of the record. A login after newest stays. A second call does what is left to do.
//
// The order of an erasure is: remove the record, or replace the record by a tombstone that refuses
// the logins up to newest; AwaitInFlight; Erase; EraseTraces. So a worker that took the work up
// before the record was gone has ended before anything is purged. Purging first would hide a
// message being handled from AwaitInFlight.
func (e *Engine) Erase(ctx context.Context, k grant.Key, newest grant.Position) error {
	upTo := jetstream.WithPurgeSequence(newest.Sequence + 1)
	err := e.purge(ctx, topology.Logins, e.loginsOf(k), upTo)
	if err == nil {
		err = e.eraseDeferred(ctx, k, newest)
	}
	if err == nil {
		err = e.purge(ctx, topology.Requests, e.commands(schema.UserRefreshDue, k))
	}
	if err == nil {
		err = e.purge(ctx, topology.Renewals, e.renewals(k))
	}
	if err != nil {
		return fmt.Errorf("erase %s: %w", k, err)
	}
	return e.EraseTraces(ctx, k)
}

// aboutUsers are the types of events whose subject names a user.
func aboutUsers() []schema.Type {
	all := schema.Outcomes()
	return slices.DeleteFunc(all, func(t schema.Type) bool { return !t.PerUser() })
}

// Knows reports whether the streams hold anything about the user at this provider for Erase to
// remove.
func (e *Engine) Knows(ctx context.Context, k grant.Key) (bool, error) {
	user := func(t schema.Type) string { return e.config.Subjects.Filter(t, k.Provider, k.User) }
	filters := map[string][]string{
		topology.Logins:   e.loginsOf(k),
		topology.Requests: e.commands(schema.UserRefreshDue, k),
		topology.Parked:   {e.parked(k)},
		topology.Renewals: append(e.renewals(k), e.deferrals(k)...),
	}
	for _, t := range aboutUsers() {
		filters[topology.Outcomes] = append(filters[topology.Outcomes], user(t))
	}
	for base, subjects := range filters {
		for _, filter := range subjects {
			if n, err := e.subjects(ctx, base, filter); n > 0 || err != nil {
				return n > 0, err
			}
		}
	}
	return false, nil
}

// ErrMayNotErase is wrapped by MayErase's error where the server forbids erasing.
var ErrMayNotErase = errors.New("this NATS user may take nothing out of the outcomes")

// mayEraseWait is how long MayErase waits for an answer: a server that forbids gives no answer.
const mayEraseWait = 5 * time.Second

// MayErase asks the server whether this connection may erase outcomes. MayErase removes nothing.
func (e *Engine) MayErase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mayEraseWait)
	defer cancel()
	const noProvider = "-" // as no provider may be called
	none := e.config.Subjects.Filter(schema.UserForgotten, noProvider, "")
	err := e.purge(ctx, topology.Outcomes, []string{none})
	if err != nil && errors.Is(e.js.Conn().LastError(), nats.ErrPermissionViolation) {
		return fmt.Errorf("%w: %w", ErrMayNotErase, err)
	}
	return err
}

// eraseDeferred removes logins and logouts put off, up to newest.
func (e *Engine) eraseDeferred(ctx context.Context, k grant.Key, newest grant.Position) error {
	for _, subject := range e.deferrals(k) { // a timer that fires meanwhile is found due
		l, err := e.deferred(ctx, subject)
		if err != nil {
			return err
		}
		if l.sequence == 0 || l.ours && newest.Before(l.position) {
			continue
		}
		err = e.purge(ctx, topology.Renewals, []string{subject},
			jetstream.WithPurgeSequence(l.sequence+1))
		if err != nil {
			return err
		}
	}
	return nil
}

// EraseTraces removes the traces of work on the user: a parked pair, outcomes, the mark of a record
// removed from the bucket of grants, and the sinks' values.
func (e *Engine) EraseTraces(ctx context.Context, k grant.Key) error {
	user := func(t schema.Type) string { return e.config.Subjects.Filter(t, k.Provider, k.User) }
	var outcomes []string
	for _, t := range aboutUsers() {
		outcomes = append(outcomes, user(t))
	}
	err := errors.Join(e.purge(ctx, topology.Parked, []string{e.parked(k)}),
		e.purge(ctx, topology.Outcomes, outcomes),
		e.EraseMark(ctx, k), e.eraseSinks(ctx, k))
	if err != nil {
		return fmt.Errorf("erase traces of %s: %w", k, err)
	}
	return nil
}

// eraseSinks removes the sinks' values about a user: outcomes waiting for a receiver, outcomes that
// could not be delivered, and acknowledgements.
func (e *Engine) eraseSinks(ctx context.Context, k grant.Key) error {
	bucket := e.config.Subjects.Name(topology.BucketSinks)
	s, err := e.js.Stream(ctx, topology.BucketStream(bucket))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // there are no sinks
	}
	if err != nil {
		return fmt.Errorf("bucket %s: %w", bucket, err)
	}
	about := "$KV." + bucket + ".*.*." + k.Provider + "." + schema.EscapeUser(k.User)
	for _, subject := range []string{about, about + ".*"} {
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(subject)); err != nil {
			return fmt.Errorf("purge %s: %w", subject, err)
		}
	}
	return nil
}

// EraseMark removes the mark of a deleted key from the bucket of grants, since the mark names the
// user forever. A record stays.
func (e *Engine) EraseMark(ctx context.Context, k grant.Key) error {
	bucket := e.config.Subjects.Name(topology.BucketGrants)
	subject := "$KV." + bucket + "." + k.Provider + "." + schema.EscapeUser(k.User)
	m, err := e.readFrom(ctx, topology.BucketStream(bucket), query{Last: subject})
	if errors.Is(err, jetstream.ErrMsgNotFound) || isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if op := m.Header.Get("KV-Operation"); op != "DEL" && op != "PURGE" {
		return nil
	}
	s, err := e.js.Stream(ctx, topology.BucketStream(bucket))
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(subject),
			jetstream.WithPurgeSequence(m.Sequence+1))
	}
	if err != nil {
		return fmt.Errorf("purge %s: %w", subject, err)
	}
	return nil
}

// isNotFound reports whether the server has no such stream: grants may be kept elsewhere.
func isNotFound(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && api.ErrorCode == jetstream.JSErrCodeStreamNotFound
}

// inFlightPoll is how often AwaitInFlight looks.
const inFlightPoll = 100 * time.Millisecond

// AwaitInFlight waits for the messages that a worker was handling at the time of the call: every
// login, every request, and every renewal of the provider. When all are acknowledged, no work begun
// before can write any more. An error means ctx ended first.
//
// AwaitInFlight knows these messages by the acknowledgements due to the server, so call it before
// anything is purged. It misses a renewal whose message was replaced while being handled.
// EraseTraces removes the traces of such a renewal if the renewal is done by then, and a worker
// must look at the record again before it publishes.
func (e *Engine) AwaitInFlight(ctx context.Context, provider string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range []struct{ base, durable string }{
		{topology.Logins, topology.ConsumerLogin}, {topology.Renewals, topology.ConsumerDeferred},
		{topology.Requests, topology.ConsumerRequest},
		{topology.Renewals, topology.ConsumerRenew(provider)},
	} {
		group.Go(func() error { return e.awaitInFlight(ctx, d.base, d.durable) })
	}
	return group.Wait()
}

func (e *Engine) awaitInFlight(ctx context.Context, base, durable string) error {
	name := e.config.Subjects.Name(base)
	inHand := uint64(0)
	for {
		c, err := e.js.Consumer(ctx, name, durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil // without a durable no worker handles a message
		}
		if err != nil {
			return fmt.Errorf("wait for what workers have taken of %s: %w", name, err)
		}
		info := c.CachedInfo()
		if inHand == 0 {
			inHand = info.Delivered.Stream
		}
		if info.NumAckPending == 0 || info.AckFloor.Stream >= inHand {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for what workers have taken of %s: %w",
				name, context.Cause(ctx))
		case <-time.After(inFlightPoll):
		}
	}
}

func (e *Engine) purge(
	ctx context.Context, base string, subjects []string, opts ...jetstream.StreamPurgeOpt,
) error {
	name := e.config.Subjects.Name(base)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return fmt.Errorf("stream %s: %w", name, err)
	}
	for _, subject := range subjects {
		if err := s.Purge(ctx, append(opts, jetstream.WithPurgeSubject(subject))...); err != nil {
			return fmt.Errorf("purge %s: %w", subject, err)
		}
	}
	return nil
}
