package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// WakeLost makes a lost grant due: nothing waits for the grant any more. woken is false if a
// message waits after all. A waiting message stays, also a timer set meanwhile.
func (e *Engine) WakeLost(ctx context.Context, k grant.Key, w grant.Work) (woken bool, err error) {
	h := workHeader(w)
	expect(h, 0)
	switch _, err := e.publish(ctx, topology.Renewals, e.due(k), h, nil); {
	case refused(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("wake %s: %w", k, err)
	}
	return true, nil
}

// PutAgain puts a standing message behind all the rest, so that the server takes the message up
// again. The server never tries again a timer whose firing it had to refuse, nor a message that its
// consumer has passed over. A message that moved meanwhile stays.
func (e *Engine) PutAgain(ctx context.Context, s Standing) (done bool, err error) {
	h := maps.Clone(s.header)
	expect(h, s.Sequence)
	switch _, err := e.publish(ctx, topology.Renewals, s.Subject, h, nil); {
	case refused(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("put %s again: %w", s.Subject, err)
	}
	return true, nil
}

// Standing is the message on a subject of RENEWALS. The zero value stands for no message.
type Standing struct {
	grant.Timer      // of a due message: without its time
	Ours        bool // written by renewd
	Subject     string
	Sequence    uint64 // 0: no message
	stored      time.Time
	header      schema.Header
}

// Fired is a due message without the server's headers about its timer. A client publishing these
// headers would order the server to remove the user's timer.
func (s Standing) Fired() Standing {
	s.header = maps.Clone(s.header)
	maps.DeleteFunc(s.header, func(name string, _ []string) bool {
		return strings.HasPrefix(name, "Nats-Schedule")
	})
	return s
}

// standing reads the message on a subject where a grant may wait. Another writer's message there is
// not ours.
func (e *Engine) standing(ctx context.Context, subject string) (Standing, error) {
	m, err := e.last(ctx, topology.Renewals, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Standing{}, nil
	}
	if err != nil {
		return Standing{}, err
	}
	s := Standing{
		Subject: m.Subject, Sequence: m.Sequence, stored: m.Time, header: schema.Header(m.Header),
	}
	timer := strings.HasPrefix(subject,
		topology.Prefixed(e.config.Subjects, topology.TimerFront)+".")
	if s.Work, err = parseWork(s.header); err == nil && timer {
		s.At, err = scheduled(s.header)
	}
	if s.Ours = err == nil; !s.Ours {
		s.Timer = grant.Timer{}
		e.foreign(ctx, m, err)
	}
	return s, nil
}

// standings reads the messages on several subjects, at once.
func (e *Engine) standings(ctx context.Context, subjects ...string) ([]Standing, error) {
	all := make([]Standing, len(subjects))
	group, ctx := errgroup.WithContext(ctx)
	for i, subject := range subjects {
		group.Go(func() (err error) { all[i], err = e.standing(ctx, subject); return err })
	}
	return all, group.Wait()
}

// Waits reads the timer of a grant, and the due messages waiting for their turn, be they renewd's
// or not.
func (e *Engine) Waits(
	ctx context.Context, k grant.Key,
) (timer Standing, due []Standing, err error) {
	all, err := e.standings(ctx, e.renewals(k)...)
	if err != nil {
		return Standing{}, nil, err
	}
	return all[0], slices.DeleteFunc(all[1:], func(s Standing) bool { return s.Sequence == 0 }), nil
}

// HasTimer reports whether the grant waits for its time, or is due.
func (e *Engine) HasTimer(ctx context.Context, k grant.Key) (bool, error) {
	timer, due, err := e.Waits(ctx, k)
	if err != nil {
		return false, fmt.Errorf("look for the timer of %s: %w", k, err)
	}
	return timer.Sequence != 0 || len(due) > 0, nil
}
