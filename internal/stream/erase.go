package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// NewestLogin is the place of the newest login that was accepted so far, of whatever user: what
// comes after it is newer than anything that is done now.
func (e *Engine) NewestLogin(ctx context.Context) (grant.Order, error) {
	name := e.config.Subjects.Name(Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return grant.Order{}, fmt.Errorf("stream %s: %w", name, err)
	}
	info := s.CachedInfo()
	return grant.Order{Stream: info.Created.UTC(), Sequence: info.State.LastSeq, Time: info.State.LastTime.UTC()}, nil
}

// Erase removes everything about the user at this provider from the streams: commands, timer,
// logins put off, parked pair, outcomes, and the mark that the removal of the record left in the
// bucket of grants. A login after newest stays. A second call does what is left to do.
//
// The order of an erasure is: take the record away, or leave what refuses the logins up to newest
// in its place; Settle; Erase; EraseTraces. Who took the work up before the record was gone has
// then ended before anything is purged. Purged first, a message that is in hand would no longer be
// seen to be.
func (e *Engine) Erase(ctx context.Context, k grant.Key, newest grant.Order) error {
	upTo := jetstream.WithPurgeSequence(newest.Sequence + 1)
	err := e.purge(ctx, Logins, e.commands(schema.UserLogin, k), upTo)
	if err == nil {
		err = e.eraseDeferred(ctx, k, newest)
	}
	if err == nil {
		err = e.purge(ctx, Requests, e.commands(schema.UserRefreshDue, k))
	}
	if err == nil {
		err = e.purge(ctx, Renewals, e.renewals(k))
	}
	if err != nil {
		return fmt.Errorf("erase %s: %w", k, err)
	}
	return e.EraseTraces(ctx, k)
}

// Knows reports whether the streams hold anything about the user at this provider that Erase would
// remove.
func (e *Engine) Knows(ctx context.Context, k grant.Key) (bool, error) {
	user := func(t schema.Type) string { return e.config.Subjects.Filter(t, k.Provider, k.User) }
	filters := map[string][]string{
		Logins: e.commands(schema.UserLogin, k), Requests: e.commands(schema.UserRefreshDue, k), Parked: {e.parked(k)},
		Renewals: append(e.renewals(k), e.user(deferredTimerSubject, k), e.user(deferredDueSubject, k)),
		Outcomes: {user(schema.MessageRejected)},
	}
	for _, t := range append(userOutcomes(), schema.UserForgotten) {
		filters[Outcomes] = append(filters[Outcomes], user(t))
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

// ErrMayNotErase is wrapped by MayErase's error where the server forbids it.
var ErrMayNotErase = errors.New("this NATS user may take nothing out of the outcomes")

// mayEraseWait is how long MayErase waits for an answer: the server gives none where it forbids.
const mayEraseWait = 5 * time.Second

// MayErase asks the server whether this connection may erase outcomes. It removes nothing.
func (e *Engine) MayErase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, mayEraseWait)
	defer cancel()
	const noProvider = "-" // as no provider may be called
	none := e.config.Subjects.Filter(schema.UserForgotten, noProvider, "")
	err := e.purge(ctx, Outcomes, []string{none})
	if err != nil && errors.Is(e.js.Conn().LastError(), nats.ErrPermissionViolation) {
		return fmt.Errorf("%w: %w", ErrMayNotErase, err)
	}
	return err
}

// eraseDeferred removes logins that were put off, up to newest.
func (e *Engine) eraseDeferred(ctx context.Context, k grant.Key, newest grant.Order) error {
	for _, front := range []string{deferredTimerSubject, deferredDueSubject} { // one that fires meanwhile is found due
		subject := e.user(front, k)
		l, err := e.deferred(ctx, subject)
		if err != nil {
			return err
		}
		if l.sequence == 0 || l.ours && newest.Before(l.order) {
			continue
		}
		if err := e.purge(ctx, Renewals, []string{subject}, jetstream.WithPurgeSequence(l.sequence+1)); err != nil {
			return err
		}
	}
	return nil
}

// EraseTraces removes what work on the user leaves behind: a parked pair, outcomes, and the mark of
// a record that was removed from the bucket of grants.
func (e *Engine) EraseTraces(ctx context.Context, k grant.Key) error {
	user := func(t schema.Type) string { return e.config.Subjects.Filter(t, k.Provider, k.User) }
	outcomes := []string{user(schema.MessageRejected)}
	for _, t := range append(userOutcomes(), schema.UserForgotten) {
		outcomes = append(outcomes, user(t))
	}
	err := errors.Join(e.purge(ctx, Parked, []string{e.parked(k)}), e.purge(ctx, Outcomes, outcomes), e.eraseMark(ctx, k))
	if err != nil {
		return fmt.Errorf("erase traces of %s: %w", k, err)
	}
	return nil
}

// eraseMark removes the mark that a bucket keeps of a key which was deleted: it names the user for
// ever. A record stays.
func (e *Engine) eraseMark(ctx context.Context, k grant.Key) error {
	bucket := e.config.Subjects.Name(BucketGrants)
	subject := "$KV." + bucket + "." + k.Provider + "." + schema.EscapeUser(k.User)
	m, err := e.readFrom(ctx, bucketStream(bucket), query{Last: subject})
	if errors.Is(err, jetstream.ErrMsgNotFound) || isNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if op := m.Header.Get("KV-Operation"); op != "DEL" && op != "PURGE" {
		return nil
	}
	s, err := e.js.Stream(ctx, bucketStream(bucket))
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(m.Sequence+1))
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

// settlePoll is how often Settle looks.
const settlePoll = 100 * time.Millisecond

// Settle waits until every login, every request, and every renewal of the provider, that a worker
// had in hand when it was called is settled, so that nothing which began before can write any more.
// Its error tells that ctx ended first.
//
// It sees what is in hand by the acknowledgements that the server waits for, so call it before
// anything is purged. A renewal whose message was replaced while it was in hand is not seen: what
// it leaves, EraseTraces takes if it is done by then, and a worker must look at the record again
// before it publishes.
func (e *Engine) Settle(ctx context.Context, provider string) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range []struct{ base, durable string }{
		{Logins, ConsumerLogin}, {Renewals, ConsumerDeferred}, {Requests, ConsumerRequest},
		{Renewals, ConsumerRenew(provider)},
	} {
		group.Go(func() error { return e.settle(ctx, d.base, d.durable) })
	}
	return group.Wait()
}

func (e *Engine) settle(ctx context.Context, base, durable string) error {
	name := e.config.Subjects.Name(base)
	inHand := uint64(0)
	for {
		c, err := e.js.Consumer(ctx, name, durable)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil // nobody works on it
		}
		if err != nil {
			return fmt.Errorf("wait for what is in hand of %s: %w", name, err)
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
			return fmt.Errorf("wait for what is in hand of %s: %w", name, context.Cause(ctx))
		case <-time.After(settlePoll):
		}
	}
}

func (e *Engine) purge(ctx context.Context, base string, subjects []string, opts ...jetstream.StreamPurgeOpt) error {
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
