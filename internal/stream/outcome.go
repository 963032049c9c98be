package stream

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// userOutcomes are the types of outcomes that answer a renewal.
func userOutcomes() []schema.Type {
	return []schema.Type{
		schema.UserSynced,
		schema.UserReauthRequired,
		schema.UserRefreshFailed,
		schema.UserSignedOut,
		schema.UserSuspended,
	}
}

// Publish stores the outcome in OUTCOMES. A second outcome with the same id within the duplicate
// window is dropped, of any type: one cause has one answer, and a redelivery that the server does
// not count as a redelivery may decide another answer. For an outcome beyond the window see
// Answered.
func (e *Engine) Publish(ctx context.Context, event schema.Event) error {
	return e.PublishMarked(ctx, event, grant.Mark{})
}

// PublishMarked is Publish for an outcome made from a record. The outcome carries the record's mark
// (Newest).
func (e *Engine) PublishMarked(ctx context.Context, event schema.Event, m grant.Mark) error {
	h, data := schema.Encode(event)
	untyped := event
	untyped.Type = ""
	h.Set(jetstream.MsgIDHeader, schema.MessageID(untyped))
	setMark(h, m)
	e.config.Propagator.Inject(ctx, h)
	if life := e.life(event.Type, m); life > 0 {
		h.Set(jetstream.MsgTTLHeader, life.String())
	}
	_, err := e.publish(ctx, topology.Outcomes, e.config.Subjects.Of(event.Address()), h, data)
	if err != nil {
		return fmt.Errorf("publish %s %s: %w", event.Type, event.ID, err)
	}
	return nil
}

// PublishOnce is Publish for the answer to a message that was stored at a time, by the server's
// clock. An earlier delivery may have answered this message, longer ago than the duplicate window.
// A backlog of any length makes messages late, and a server that took over may not count a
// redelivery as a redelivery. So of a late message PublishOnce looks at the user's last answers. Of
// a late redelivery it also reads the user's outcomes since the message was stored, a read each,
// mostRead at most. Messages that name no user share one place for their answers: after a flood of
// such messages, each would read the answers to all. An answer beyond mostRead may be stored twice.
func (e *Engine) PublishOnce(
	ctx context.Context, event schema.Event, stored time.Time, redelivered bool,
) error {
	k := grant.Key{Provider: event.Provider, User: event.User}
	var out bool
	var err error
	late := e.Now().Sub(stored) > grant.Recent
	if late {
		out, err = e.Answered(ctx, k, event.ID)
	}
	if late && redelivered && !out && err == nil {
		out, err = e.answeredSince(ctx, k, event.ID, stored.Add(-serversApart), mostRead)
	}
	if out || err != nil {
		return err
	}
	return e.Publish(ctx, event)
}

// mostRead is how many outcomes are read to find the answer to a refused message.
const mostRead = 500

// life is how long an outcome made from a record with this mark is kept; 0 or less: as long as the
// stream keeps the rest. The zero mark is no record's.
func (e *Engine) life(of schema.Type, m grant.Mark) time.Duration {
	switch {
	case of == schema.UserSynced, of == schema.TokenRead:
		return e.config.SyncedTTL
	case of == schema.MessageRejected, of == schema.UserRefreshFailed && m == grant.Mark{}:
		return e.rejectedTTL()
	}
	return 0
}

// crowdedTTL is how long answers about no record are kept in a crowded stream.
const crowdedTTL = time.Hour

// rejectedTTL is shorter while OUTCOMES is crowded. A publisher can cause any number of answers
// about invented users, and these answers must not push the audit log out.
func (e *Engine) rejectedTTL() time.Duration {
	ttl := e.config.RejectedTTL
	crowded := func(s Size) bool { return s.Stream == topology.Outcomes && s.Crowded() }
	d := e.depths.Load()
	if (ttl <= 0 || ttl > crowdedTTL) && d != nil && slices.ContainsFunc(d.Sizes, crowded) {
		return crowdedTTL
	}
	return ttl
}

// Answered reports whether the outcome with this id is the user's last of its type, or the last
// rejection of a message for the user. Then the outcome was published, even longer ago than the
// duplicate window, or by a version that named the outcome otherwise (grant.IsOutcome).
func (e *Engine) Answered(ctx context.Context, k grant.Key, id string) (bool, error) {
	all, err := e.lastOutcomes(ctx, k, append(userOutcomes(), schema.MessageRejected))
	if err != nil {
		return false, fmt.Errorf("look for outcome %s of %s: %w", id, k, err)
	}
	return slices.ContainsFunc(all, func(o storedOutcome) bool {
		return grant.IsOutcome(k, o.event, id)
	}), nil
}

// AnsweredSince is Answered for an outcome that newer outcomes of the user may have followed.
// AnsweredSince looks at all outcomes stored since a time, by the server's clock, and takes a read
// for each.
func (e *Engine) AnsweredSince(
	ctx context.Context, k grant.Key, id string, since time.Time,
) (bool, error) {
	return e.answeredSince(ctx, k, id, since, math.MaxInt)
}

// answeredSince is AnsweredSince with this many reads at most: an outcome beyond them is not found.
func (e *Engine) answeredSince(
	ctx context.Context, k grant.Key, id string, since time.Time, most int,
) (bool, error) {
	q := query{Next: e.user("*.*", k), Since: &since}
	for range most {
		m, err := e.read(ctx, topology.Outcomes, q)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for outcome %s of %s: %w", id, k, err)
		}
		found := schema.Event{ID: schema.Header(m.Header).Get(headerID), Data: m.Data}
		if grant.IsOutcome(k, found, id) {
			return true, nil
		}
		q.From, q.Since = m.Sequence+1, nil
	}
	return false, nil
}

// LastOutcome returns the newest outcome that answers a command of the user, or user.forgotten;
// found is false if the user has no such outcome.
func (e *Engine) LastOutcome(
	ctx context.Context, k grant.Key,
) (event schema.Event, found bool, err error) {
	all, err := e.lastOutcomes(ctx, k, append(userOutcomes(), schema.UserForgotten))
	if err != nil {
		return schema.Event{}, false, fmt.Errorf("last outcome of %s: %w", k, err)
	}
	var newest storedOutcome
	for _, o := range all {
		if o.sequence > newest.sequence {
			newest = o
		}
	}
	return newest.event, newest.sequence > 0, nil
}

// storedOutcome is an outcome as stored in OUTCOMES. The zero value stands for no outcome.
type storedOutcome struct {
	event    schema.Event
	sequence uint64
	mark     grant.Mark
}

// lastOutcomes reads the user's last outcome of each type, all at once.
func (e *Engine) lastOutcomes(
	ctx context.Context, k grant.Key, types []schema.Type,
) ([]storedOutcome, error) {
	all := make([]storedOutcome, len(types))
	group, ctx := errgroup.WithContext(ctx)
	for i, t := range types {
		group.Go(func() (err error) { all[i], err = e.lastOutcome(ctx, k, t); return err })
	}
	return all, group.Wait()
}

func (e *Engine) lastOutcome(
	ctx context.Context, k grant.Key, t schema.Type,
) (storedOutcome, error) {
	m, err := e.last(ctx, topology.Outcomes,
		e.config.Subjects.Of(schema.Address{Type: t, Provider: k.Provider, User: k.User}))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return storedOutcome{}, nil
	}
	if err != nil {
		return storedOutcome{}, err
	}
	h := schema.Header(m.Header)
	event, err := e.config.Subjects.Decode(h, m.Data, schema.Arrival{
		Subject:  m.Subject,
		Stream:   e.config.Subjects.Name(topology.Outcomes),
		Sequence: m.Sequence,
		Time:     m.Time,
	})
	mark, markErr := grant.ParseMark(h.Get(headerRecord))
	if err = errors.Join(err, markErr); err != nil {
		e.foreign(ctx, m, err)
		return storedOutcome{}, nil
	}
	return storedOutcome{event, m.Sequence, mark}, nil
}

// CountOutcomes counts the messages of OUTCOMES, but for the acts of operators, which tell nothing
// of a grant.
func (e *Engine) CountOutcomes(ctx context.Context) (uint64, error) {
	name := e.config.Subjects.Name(topology.Outcomes)
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	acted := e.config.Subjects.Filter(schema.OperatorActed, "", "")
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(acted))
	if err != nil {
		return 0, fmt.Errorf("look at stream %s: %w", name, err)
	}
	return info.State.Msgs - min(info.State.Msgs, info.State.Subjects[acted]), nil
}

// OutcomeAt reads the outcome with this sequence. found is false if the outcome is gone: erased, or
// older than outcomes are kept. For a message that is no event the error is a *schema.Malformed.
func (e *Engine) OutcomeAt(ctx context.Context, sequence uint64) (_ schema.Event, found bool,
	_ error) {
	name := e.config.Subjects.Name(topology.Outcomes)
	m, err := e.read(ctx, topology.Outcomes, query{From: sequence})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return schema.Event{}, false, nil
	}
	if err != nil {
		return schema.Event{}, false, err
	}
	event, err := e.config.Subjects.Decode(schema.Header(m.Header), m.Data, schema.Arrival{
		Subject: m.Subject, Stream: name, Sequence: m.Sequence, Time: m.Time,
	})
	return event, true, err
}
