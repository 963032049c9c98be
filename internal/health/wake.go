package health

import (
	"context"
	"slices"
	"time"
)

const (
	// wakeFor is how long a worker that is gone keeps others from waking the waiting grants.
	// A worker that wakes them says so again each third of wakeFor.
	wakeFor = 30 * time.Second
	// wakeEvery is the least time between two wakings, and doubles up to an hour. Workers whose
	// settings differ change the settings back and forth, and a failing user must not be tried each
	// time. The end of an operator's pause waits for nothing: see State.unpaused.
	wakeEvery = time.Minute
)

// wakeAll wakes the waiting grants whenever the record says so, until ctx ends.
func (g *Guard) wakeAll(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := g.wake(ctx); err != nil && ctx.Err() == nil {
			g.Logger.Warn("not all who wait for the provider were woken; the rest come in their "+
				"own time, or with the next try",
				"provider", g.Provider, "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// wake wakes the waiting grants once, if no other worker does.
func (g *Guard) wake(ctx context.Context) error {
	at := g.state.Load().WakeAt
	if g.Wake == nil || at.IsZero() {
		return nil
	}
	began := g.Now()
	until, err := g.claimWake(ctx, at)
	if err != nil || until.IsZero() {
		return err
	}
	tick := time.NewTicker(wakeFor / 3)
	defer tick.Stop()
	walking, stop := context.WithCancel(ctx)
	defer stop()
	held := make(chan claims, 1)
	go func() { held <- g.holdWake(walking, stop, tick.C, claims{until}) }()
	n, err := g.Wake(walking, g.Provider, at)
	overtaken := ctx.Err() == nil && walking.Err() != nil
	stop()
	mine := <-held
	if overtaken {
		return nil // all are woken again
	}
	if err != nil {
		return err // the next worker tries again once WakeUntil is over
	}
	g.Logger.Info("those who waited for the provider are tried again", "provider", g.Provider,
		"grants", n, "since", at)
	return g.change(ctx, func(s State) State { return s.woken(at, began, mine) })
}

// claims are the values of WakeUntil that are a worker's claim on a waking. A write whose answer
// was lost may have been stored, so there may be several.
type claims []time.Time

func (c claims) have(until time.Time) bool {
	return slices.ContainsFunc(c, func(one time.Time) bool { return one.Equal(until) })
}

// claimWake keeps other workers from waking the grants that wait since at, and returns until when;
// zero: the grants are not to be woken now.
func (g *Guard) claimWake(ctx context.Context, at time.Time) (until time.Time, err error) {
	err = g.change(ctx, func(s State) State {
		now := g.Now()
		until = time.Time{}
		if !s.WakeAt.Equal(at) || s.WakeUntil.After(now) || s.Paused != nil {
			return s
		}
		if now.Sub(s.WakeUntil) > time.Hour {
			s.Wakes = 0
		}
		until = now.Add(wakeFor).UTC()
		s.WakeUntil = until
		return s
	})
	return until, err
}

// holdWake extends a claim at each tick until ctx ends, and returns the claim. A claim that an
// operator's act has cleared stays cleared, and lost is called: all are woken again.
func (g *Guard) holdWake(
	ctx context.Context, lost func(), tick <-chan time.Time, mine claims,
) claims {
	for {
		select {
		case <-ctx.Done():
			return mine
		case <-tick:
		}
		next, kept := g.Now().Add(wakeFor).UTC(), false
		err := g.change(context.WithoutCancel(ctx), func(s State) State {
			if kept = mine.have(s.WakeUntil); kept {
				s.WakeUntil = next
			}
			return s
		})
		switch {
		case err != nil:
			mine = append(mine, next)
		case kept:
			mine = claims{next}
		default:
			lost()
			return mine
		}
	}
}

// woken is s after the grants that waited since at were woken under a claim, from began on.
func (s State) woken(at, began time.Time, mine claims) State {
	if s.WakeAt.Equal(at) {
		s.WakeAt = time.Time{}
	}
	if mine.have(s.WakeUntil) {
		s.WakeUntil = began.Add(min(wakeEvery<<min(s.Wakes, 10), time.Hour)).UTC()
		s.Wakes++
	}
	return s
}
