package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// userOutcomes are the types that answer a renewal.
func userOutcomes() []schema.Type {
	return []schema.Type{schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed}
}

// Publish stores the outcome in OUTCOMES. A second one with the same id within the duplicate window
// is dropped; beyond it see Answered.
func (e *Engine) Publish(ctx context.Context, event schema.Event) error {
	return e.PublishMarked(ctx, event, grant.Mark{})
}

// PublishMarked is Publish for an outcome made from a record, whose mark it carries (Newest).
func (e *Engine) PublishMarked(ctx context.Context, event schema.Event, m grant.Mark) error {
	h, data := schema.Encode(event)
	setMark(h, m)
	e.config.Propagator.Inject(ctx, h)
	if life := e.life(event.Type, m); life > 0 {
		h.Set(jetstream.MsgTTLHeader, life.String())
	}
	if _, err := e.publish(ctx, Outcomes, e.config.Subjects.Of(event.Address()), h, data); err != nil {
		return fmt.Errorf("publish %s %s: %w", event.Type, event.ID, err)
	}
	return nil
}

// life is how long an outcome made from a record with this mark is kept; 0 or less: as long as the
// stream keeps the rest. The zero mark is no record's.
func (e *Engine) life(of schema.Type, m grant.Mark) time.Duration {
	switch {
	case of == schema.UserSynced:
		return e.config.SyncedTTL
	case of == schema.MessageRejected, of == schema.UserRefreshFailed && m == grant.Mark{}:
		return e.rejectedTTL()
	}
	return 0
}

// crowdedTTL is how long answers about no record are kept in a crowded stream.
const crowdedTTL = time.Hour

// rejectedTTL is shorter while OUTCOMES is crowded, so that answers about users who do not exist,
// of which a publisher can have any number made, do not push the audit log out.
func (e *Engine) rejectedTTL() time.Duration {
	ttl := e.config.RejectedTTL
	crowded := func(s Size) bool { return s.Stream == Outcomes && s.Crowded() }
	d := e.depths.Load()
	if (ttl <= 0 || ttl > crowdedTTL) && d != nil && slices.ContainsFunc(d.Sizes, crowded) {
		return crowdedTTL
	}
	return ttl
}

// Answered reports whether the outcome with this id is the user's last of its type, or the last
// rejection of what was published for the user: it was published, also when that is longer ago than
// the duplicate window.
func (e *Engine) Answered(ctx context.Context, k grant.Key, id string) (bool, error) {
	all, err := e.lastOutcomes(ctx, k, append(userOutcomes(), schema.MessageRejected))
	if err != nil {
		return false, fmt.Errorf("look for outcome %s of %s: %w", id, k, err)
	}
	return slices.ContainsFunc(all, func(o storedOutcome) bool { return o.event.ID == id }), nil
}

// AnsweredSince is Answered for an outcome that others of the user may have followed: it looks at
// all that were stored since a time, by the server's clock. It takes a read for each.
func (e *Engine) AnsweredSince(ctx context.Context, k grant.Key, id string, since time.Time) (bool, error) {
	for q := (query{Next: e.user("*.*", k), Since: &since}); ; {
		m, err := e.read(ctx, Outcomes, q)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("look for outcome %s of %s: %w", id, k, err)
		}
		if schema.Header(m.Header).Get(headerID) == id {
			return true, nil
		}
		q.From, q.Since = m.Sequence+1, nil
	}
}

// LastOutcome returns the user's newest user.synced, user.reauth_required or user.refresh_failed;
// found is false if there is none.
func (e *Engine) LastOutcome(ctx context.Context, k grant.Key) (event schema.Event, found bool, err error) {
	all, err := e.lastOutcomes(ctx, k, userOutcomes())
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

// storedOutcome is an outcome as OUTCOMES has it. The zero value stands for none.
type storedOutcome struct {
	event    schema.Event
	sequence uint64
	mark     grant.Mark
}

// lastOutcomes reads the user's last outcome of each type, all at once.
func (e *Engine) lastOutcomes(ctx context.Context, k grant.Key, types []schema.Type) ([]storedOutcome, error) {
	all := make([]storedOutcome, len(types))
	group, ctx := errgroup.WithContext(ctx)
	for i, t := range types {
		group.Go(func() (err error) { all[i], err = e.lastOutcome(ctx, k, t); return err })
	}
	return all, group.Wait()
}

func (e *Engine) lastOutcome(ctx context.Context, k grant.Key, t schema.Type) (storedOutcome, error) {
	m, err := e.last(ctx, Outcomes, e.config.Subjects.Of(schema.Address{Type: t, Provider: k.Provider, User: k.User}))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return storedOutcome{}, nil
	}
	if err != nil {
		return storedOutcome{}, err
	}
	h := schema.Header(m.Header)
	event, err := e.config.Subjects.Decode(h, m.Data, schema.Arrival{
		Subject: m.Subject, Stream: e.config.Subjects.Name(Outcomes), Sequence: m.Sequence, Time: m.Time,
	})
	mark, markErr := grant.ParseMark(h.Get(headerRecord))
	if err = errors.Join(err, markErr); err != nil {
		e.foreign(ctx, m, err)
		return storedOutcome{}, nil
	}
	return storedOutcome{event, m.Sequence, mark}, nil
}
