package health

import (
	"context"
	"time"
)

const (
	// wakeFor is how long a worker has to wake the waiting grants. After wakeFor another worker
	// starts over, in case the first worker died.
	wakeFor = 5 * time.Minute
	// wakeEvery is the least time between two wakings, and doubles up to an hour. Workers whose
	// settings differ change the settings back and forth, and a failing user must not be tried each
	// time.
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
	mine, began := false, g.Now()
	if err := g.change(ctx, func(s State) State {
		now := g.Now()
		if mine = s.WakeAt.Equal(at) && !s.WakeUntil.After(now) && s.Paused == nil; mine {
			if now.Sub(s.WakeUntil) > time.Hour {
				s.Wakes = 0
			}
			s.WakeUntil = now.Add(wakeFor).UTC()
		}
		return s
	}); err != nil || !mine {
		return err
	}
	n, err := g.Wake(ctx, g.Provider, at)
	if err != nil {
		return err // the next worker tries again once WakeUntil is over
	}
	g.Logger.Info("those who waited for the provider are tried again", "provider", g.Provider,
		"grants", n, "since", at)
	return g.change(ctx, func(s State) State {
		if s.WakeAt.Equal(at) {
			s.WakeAt = time.Time{}
		}
		s.WakeUntil = began.Add(min(wakeEvery<<min(s.Wakes, 10), time.Hour)).UTC()
		s.Wakes++
		return s
	})
}
