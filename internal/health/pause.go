package health

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// ErrNotPaused: there is nothing to resume.
var ErrNotPaused = errors.New("the provider is not paused")

// PauseBy stores an operator's pause in the provider's record, in place of a pause already there.
// Every worker heeds the pause within a second or so, and it outlives the breaker and all workers.
// A zero Until holds until Resume. The change is told as provider.degraded, in the name of p.By.
func PauseBy(ctx context.Context, bucket jetstream.KeyValue, provider string, p Pause) error {
	_, err := change(ctx, bucket, provider, func(s State) (State, error) {
		return s.paused(p), nil
	})
	return err
}

// ResumeBy ends an operator's pause, and has the calls held back by the breaker or a doubt tried at
// once. by names the operator, at now. Errors: ErrNotPaused if nothing holds the provider back,
// ErrRecord.
func ResumeBy(
	ctx context.Context, bucket jetstream.KeyValue, provider, by string, now time.Time,
) error {
	_, err := change(ctx, bucket, provider, func(s State) (State, error) {
		if s.Paused == nil && s.Outage == nil && s.Doubt == nil {
			return s, fmt.Errorf("%s: %w", provider, ErrNotPaused)
		}
		return s.resumed(by, now), nil
	})
	return err
}

// paused is s with the pause p.
func (s State) paused(p Pause) State {
	if s.Paused != nil {
		s = s.unpaused(p.By, p.Since)
	}
	s.Paused = &p
	s = s.tell(schema.ProviderDegraded, ReasonPaused, p.Since, p.Since)
	n := &s.Untold[len(s.Untold)-1]
	n.By, n.Note, n.Until = p.By, p.Note, p.Until
	return s
}

// unpaused ends the pause, in the name of by; empty: the pause ran out. Waiting grants are woken.
func (s State) unpaused(by string, now time.Time) State {
	p := s.Paused
	s.Paused, s.RecoveredAt, s.LiftUntil = nil, now.UTC(), p.end()
	s = s.wokenNow(now)
	s = s.tell(schema.ProviderRecovered, ReasonPaused, p.Since, now)
	s.Untold[len(s.Untold)-1].By = by
	return s
}

// resumed is s with the next try free to be made at now.
func (s State) resumed(by string, now time.Time) State {
	if s.Paused != nil {
		s = s.unpaused(by, now)
	}
	if o := s.Outage; o != nil {
		s.Outage = &Outage{Reason: o.Reason, Since: o.Since, Until: now.UTC()}
	}
	if d := s.Doubt; d != nil && !d.Until.IsZero() {
		s.Doubt = &Doubt{Reason: d.Reason, Since: d.Since, Until: now.UTC()}
	}
	return s.wokenNow(now)
}

// wokenNow has the waiting grants woken at once, however lately they were woken: an operator has
// decided so.
func (s State) wokenNow(now time.Time) State {
	s.WakeAt, s.WakeUntil, s.Wakes = now.UTC(), time.Time{}, 0
	return s
}

// expired ends a pause whose time is over.
func (s State) expired(now time.Time) State {
	if s.Paused == nil || now.Before(s.Paused.end()) {
		return s
	}
	return s.unpaused("", now)
}

// end is when the pause ends. A pause without an end is set for longer than any user waits.
func (p Pause) end() time.Time {
	if p.Until.IsZero() {
		return p.Since.AddDate(100, 0, 0).UTC()
	}
	return p.Until.UTC()
}
