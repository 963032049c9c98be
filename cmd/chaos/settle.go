package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

var errUnsettled = errors.New("not settled")

// How long everything may take to settle, and how long it may make no progress meanwhile.
const (
	settlesIn = 3 * time.Minute
	stuckFor  = time.Minute
	// reacts is longer than people take to sign in again after they were told to.
	reacts = 3 * time.Second
)

// settle waits until nothing is late, refused, in doubt or unanswered any more. It gives up on what
// makes no progress: the audit names it.
func (a *audit) settle(ctx context.Context, eyes *witness, say func(string, ...any)) (time.Duration, error) {
	say("everything is healed; waiting until it has settled")
	a.people.gone.Store(true)
	for _, k := range a.world.workers {
		if err := k.start(); err != nil {
			return 0, err
		}
	}
	if err := a.world.workersReady(ctx, time.Minute); err != nil {
		return 0, err
	}
	s, closeStore, err := a.world.openStore(ctx)
	if err != nil {
		return 0, err
	}
	defer closeStore()
	ctx, stuck := context.WithCancelCause(ctx)
	defer stuck(nil)
	said, moved, fewest, calm := time.Now(), time.Now(), -1, time.Time{}
	err = eventually(ctx, settlesIn, func() error {
		n, err := a.unsettled(ctx, s, eyes)
		switch {
		case err != nil:
			calm = time.Time{}
		case calm.IsZero():
			calm = time.Now()
			fallthrough
		case time.Since(calm) < reacts:
			err = fmt.Errorf("%w: who was told to sign in may be about to", errUnsettled)
		}
		switch {
		case fewest < 0 || n < fewest:
			fewest, moved = n, time.Now()
		case time.Since(moved) > stuckFor:
			stuck(fmt.Errorf("no progress for %v", stuckFor))
		}
		if err != nil && time.Since(said) > 10*time.Second {
			said = time.Now()
			say("%v", err)
		}
		return err
	})
	return time.Since(a.world.ended), err
}

// unsettled counts what is on its way, and who was not renewed since the last fault.
func (a *audit) unsettled(ctx context.Context, s grant.Store, eyes *witness) (int, error) {
	behind, untold, oldest := 0, 0, time.Duration(0)
	for cursor := ""; ; {
		page, next, err := s.List(ctx, cursor, 500)
		if err != nil {
			return 0, err
		}
		for _, g := range page {
			if g.Pending != nil && !eyes.knows(g.Pending.ID) {
				untold++
			}
			if late, ok := a.behind(g.Grant); ok {
				behind++
				oldest = max(oldest, late)
			}
		}
		if cursor = next; next == "" {
			break
		}
	}
	unanswered := 0
	if behind+untold == 0 { // else it is too early to look at everything
		unanswered = a.unanswered(eyes)
	}
	n := behind + untold + unanswered
	if n > 0 {
		return n, fmt.Errorf("%w: %d grants are not renewed yet, late, refused or in doubt, the latest by %v; of %d the outcome was not heard yet; %d commands have no answer",
			errUnsettled, behind, oldest.Round(time.Second), untold, unanswered)
	}
	return 0, nil
}

// behind reports whether a grant has work before it, and how late it is.
func (a *audit) behind(g grant.Grant) (late time.Duration, _ bool) {
	if g.Status != grant.Live {
		return 0, false
	}
	late = time.Since(g.NextDueAt)
	if x := a.people.byName[g.Provider+"/"+g.User]; x != nil && (x.bare || a.held(x, g)) {
		return late, late > 2*time.Second // there is nothing to renew it with
	}
	return late, g.RefreshedAt.Before(a.world.ended) || late > 2*time.Second || g.Verdict != nil || g.Doubt != nil || g.Outages > 0
}

// stop looks at what the workers show, stops them in order, and reads what they have left.
func (a *audit) stop(ctx context.Context) error {
	leaked := a.leaks(ctx)
	var wg sync.WaitGroup
	errs := make([]error, len(a.world.workers))
	for i, k := range a.world.workers {
		wg.Go(func() { errs[i] = k.stop(40 * time.Second) })
	}
	wg.Wait()
	a.schedule.errs = append(a.schedule.errs, errs...)
	return errors.Join(leaked, a.load(ctx))
}
