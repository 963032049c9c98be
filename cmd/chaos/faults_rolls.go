package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// roll restarts every worker in turn, as an operator does after a change. Some workers stop in
// order, the rest are killed. A roll is finished even when ctx ends, so that no change is left half
// done.
func (x *strike) roll(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for i, k := range x.world.workers {
		if err := eventually(ctx, 5*time.Minute, k.mine); err != nil {
			return err
		}
		part := &strike{
			world:  x.world,
			worker: k,
			lane:   workerLane,
			kind:   rolledStop,
			from:   time.Now(),
		}
		if x.brief && i%2 == 0 || !x.brief && x.rand.IntN(2) == 0 {
			part.kind, part.lost = rolledKill, true
			k.kill()
		} else {
			errs = append(errs, k.stop(40*time.Second))
		}
		part.to = time.Now()
		errs = append(errs, k.start(), eventually(ctx, 3*time.Minute, k.ready))
		k.release()
		x.parts = append(x.parts, part)
	}
	return errors.Join(errs...)
}

var errHeld = errors.New("held by another fault")

// mine takes the worker, or returns errHeld if another fault holds the worker.
func (k *worker) mine() error {
	if !k.take() {
		return fmt.Errorf("%s: %w", k.name, errHeld)
	}
	return nil
}

// rotateKeys adds keys, promotes the new keys once every worker has them, and rolls the workers.
// Meanwhile people sign in by apps which have just fetched the public key.
func rotateKeys(ctx context.Context, x *strike) error {
	x.unfelt = true
	// The command is refused while no server can store the record of the rotation.
	if err := eventually(ctx, time.Minute, func() error {
		_, err := output(x.world.command(nil, "keys", "rotate", "--by", "chaos"))
		return err
	}); err != nil {
		return err
	}
	rolled, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { x.people.comeAndGo(rolled, rand.New(rand.NewPCG(x.rand.Uint64(), 0))) })
	// Do this also if the run ends meanwhile, since unpromoted keys block the next rotation.
	err := eventually(context.WithoutCancel(ctx), 5*time.Minute, func() error {
		_, err := output(x.world.command(nil, "keys", "promote", "--by", "chaos"))
		return err
	})
	err = errors.Join(err, x.roll(ctx))
	stop()
	wg.Wait()
	return err
}

// comeAndGo has people sign in by new apps without the public key, and asks for other people, until
// ctx ends.
func (p *people) comeAndGo(ctx context.Context, r *rand.Rand) {
	done := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		x, other := p.all[r.IntN(len(p.all))], p.all[r.IntN(len(p.all))]
		if by, err := newApp(p.world, "/fresh"); err == nil && x.mu.TryLock() {
			p.signIn(done, x, by)
			x.mu.Unlock()
		}
		if other.mu.TryLock() {
			p.request(done, other, r)
			other.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// changeSettings rolls out other settings, and then the settings as shipped, so that workers with
// different settings run side by side each time. A plan that raises the margin then lowers the
// margin, so for a while each grant is due by one rule and not by the other.
func changeSettings(ctx context.Context, x *strike) error {
	x.unfelt = true
	plans := [][]tuning{
		{
			{concurrency: 64, margin: 0.5, jitter: 0.2},
			{concurrency: 64, margin: 0.02, jitter: 0.001},
		},
		{{concurrency: 8, margin: 0.2, jitter: 0.1}},
		{{concurrency: 64, rate: max(20, 0.3*float64(x.world.Users)), margin: 0.2, jitter: 0.1}},
	}
	plan := plans[0]
	if !x.brief {
		plan = plans[x.rand.IntN(len(plans))]
	}
	var errs []error
	for _, t := range append(plan, asShipped) {
		errs = append(errs, x.world.write(t), x.roll(ctx))
		x.last(ctx, x.world.Life*3/4, x.world.Life)
	}
	return errors.Join(errs...)
}
