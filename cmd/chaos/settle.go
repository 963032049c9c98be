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

// How long all work may take to settle, and how long without progress.
const (
	settlesIn = 3 * time.Minute
	stuckFor  = time.Minute
	// reacts is longer than people take to sign in again after being told.
	reacts = 3 * time.Second
)

// heal starts all workers and returns when they are ready.
func (a *audit) heal(ctx context.Context) error {
	for _, k := range a.world.workers {
		if err := k.start(); err != nil {
			return err
		}
	}
	return a.world.workersReady(ctx, time.Minute)
}

// settle waits until no grant is late, refused or in doubt and no command is unanswered. Without
// progress settle gives up, and the audit names the rest.
func (a *audit) settle(
	ctx context.Context, eyes *witness, say func(string, ...any),
) (time.Duration, error) {
	say("everything is healed; waiting until it has settled")
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

// unsettled counts outstanding work, and the users not renewed since the last fault.
func (a *audit) unsettled(ctx context.Context, s grant.Store, eyes *witness) (int, error) {
	behind, untold, oldest := 0, 0, time.Duration(0)
	for page, err := range grant.Pages(ctx, s) {
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
	}
	unanswered := 0
	if behind+untold == 0 { // else too early for a full look
		unanswered = a.unanswered(eyes)
	}
	n := behind + untold + unanswered
	if n > 0 {
		return n, fmt.Errorf("%w: %d grants are not renewed yet, late, refused or in doubt, the "+
			"latest by %v; of %d the outcome was not heard yet; %d commands have no answer",
			errUnsettled, behind, oldest.Round(time.Second), untold, unanswered)
	}
	return 0, nil
}

// behind reports whether work on a grant is outstanding, and how late the work is.
func (a *audit) behind(g grant.Grant) (late time.Duration, _ bool) {
	if g.Status != grant.Live {
		return 0, false
	}
	late = time.Since(g.NextDueAt)
	if x := a.people.byName[g.Provider+"/"+g.User]; x != nil && (x.bare || a.held(x, g)) {
		return late, late > 2*time.Second // a renewal cannot succeed
	}
	return late,
		g.RefreshedAt.Before(a.world.ended) || late > 2*time.Second || g.Verdict != nil ||
			g.Doubt != nil || g.Outages > 0
}

// stop looks for tokens in the workers' output, stops the workers in order, and loads the store and
// OUTCOMES.
func (a *audit) stop(ctx context.Context) error {
	leaked := a.leaks(ctx)
	a.stopped = time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(a.world.workers))
	for i, k := range a.world.workers {
		wg.Go(func() { errs[i] = k.stop(40 * time.Second) })
	}
	wg.Wait()
	a.schedule.errs = append(a.schedule.errs, errs...)
	return errors.Join(leaked, a.load(ctx))
}
