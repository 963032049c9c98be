package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// NewestLogin is the place of the newest login that was accepted so far, of whatever user: what comes after it is newer
// than anything that is done now.
func (e *Engine) NewestLogin(ctx context.Context) (grant.Order, error) {
	name := e.config.Subjects.Name(Logins)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return grant.Order{}, fmt.Errorf("stream %s: %w", name, err)
	}
	info := s.CachedInfo()
	return grant.Order{Stream: info.Created.UTC(), Sequence: info.State.LastSeq}, nil
}

// Erase removes everything about the user at this provider from the streams: commands, timer, parked pair, outcomes. A
// login after newest stays. Call it after the store's record is gone, then Settle and EraseTraces; a second call does what
// is left to do.
func (e *Engine) Erase(ctx context.Context, k grant.Key, newest grant.Order) error {
	upTo := jetstream.WithPurgeSequence(newest.Sequence + 1)
	err := e.purge(ctx, Logins, []string{e.config.Subjects.Filter(schema.UserLogin, k.Provider, k.User)}, upTo)
	if err == nil {
		err = e.purge(ctx, Requests, []string{e.config.Subjects.Filter(schema.UserRefreshDue, k.Provider, k.User)})
	}
	if err == nil {
		err = e.purge(ctx, Renewals, []string{e.timer(k), e.due(k)})
	}
	if err != nil {
		return fmt.Errorf("erase %s: %w", k, err)
	}
	return e.EraseTraces(ctx, k)
}

// EraseTraces removes what work on the user leaves behind: a parked pair, and outcomes.
func (e *Engine) EraseTraces(ctx context.Context, k grant.Key) error {
	user := func(t schema.Type) string { return e.config.Subjects.Filter(t, k.Provider, k.User) }
	outcomes := []string{user(schema.MessageRejected)}
	for _, t := range append(userOutcomes(), schema.UserForgotten) {
		outcomes = append(outcomes, user(t))
	}
	if err := errors.Join(e.purge(ctx, Parked, []string{e.parked(k)}), e.purge(ctx, Outcomes, outcomes)); err != nil {
		return fmt.Errorf("erase traces of %s: %w", k, err)
	}
	return nil
}

// settlePoll is how often Settle looks.
const settlePoll = 100 * time.Millisecond

// Settle waits until every login, and every renewal of the provider, that a worker had in hand when it was called is
// settled, so that nothing which began before can write any more. Its error tells that ctx ended first.
func (e *Engine) Settle(ctx context.Context, provider string) error {
	return errors.Join(e.settle(ctx, Logins, ConsumerLogin), e.settle(ctx, Renewals, ConsumerRenew(provider)))
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
