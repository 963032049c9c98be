package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// schedule strikes in all lanes until ctx ends. Then every fault is healed.
type schedule struct {
	world  *world
	people *people
	kinds  []kind
	say    func(string, ...any)

	mu      sync.Mutex
	strikes []*strike
	errs    []error
}

func (s *schedule) run(ctx context.Context, seed uint64) {
	var wg sync.WaitGroup
	wg.Go(func() { s.workers(ctx, rand.New(rand.NewPCG(seed, 101))) })
	lane := func(stream uint64, of lane, gap time.Duration, aim func(*strike)) {
		wg.Go(func() { s.one(ctx, rand.New(rand.NewPCG(seed, stream)), of, gap, aim) })
	}
	lane(102, serverLane, s.world.ServerGap, func(*strike) {})
	for i, id := range []string{graceful, strict} {
		lane(103+uint64(i), providerLane, s.world.ProviderGap, func(x *strike) {
			x.provider = s.world.providers[id]
		})
	}
	lane(105, rollLane, s.world.RollGap, func(*strike) {})
	lane(106, userLane, s.world.UserGap, func(*strike) {})
	lane(108, eraseLane, s.world.UserGap, func(*strike) {})
	lane(107, slowLane, s.world.SlowGap, func(x *strike) {
		x.worker = s.world.free(x.rand.IntN(len(s.world.workers)))
	})
	wg.Wait()
}

// one strikes the faults of a lane in turn.
func (s *schedule) one(
	ctx context.Context, r *rand.Rand, of lane, gap time.Duration, aim func(*strike),
) {
	for {
		k, ok := s.draw(r, of)
		x := &strike{world: s.world, rand: rand.New(rand.NewPCG(r.Uint64(), 0))}
		if x.last(ctx, gap/2, 3*gap/2); ctx.Err() != nil || !ok {
			return
		}
		if aim(x); of == slowLane && x.worker == nil {
			continue // other faults hold all workers
		}
		s.strike(ctx, k, x)
		if x.worker != nil {
			x.worker.release()
		}
	}
}

// workers strikes workers, several of them at a time.
func (s *schedule) workers(ctx context.Context, r *rand.Rand) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		k, ok := s.draw(r, workerLane)
		x := &strike{world: s.world, rand: rand.New(rand.NewPCG(r.Uint64(), 0))}
		pick := r.IntN(len(s.world.workers))
		if x.last(ctx, s.world.WorkerGap/2, 3*s.world.WorkerGap/2); ctx.Err() != nil || !ok {
			return
		}
		if x.worker = s.world.free(pick); x.worker == nil {
			continue
		}
		wg.Go(func() {
			defer x.worker.release()
			s.strike(ctx, k, x)
		})
	}
}

// free takes the worker of this number, or the next worker not held by a fault. The result is nil
// if faults hold all workers.
func (w *world) free(n int) *worker {
	for i := range w.workers {
		if k := w.workers[(n+i)%len(w.workers)]; k.take() {
			return k
		}
	}
	return nil
}

func (s *schedule) draw(r *rand.Rand, of lane) (kind, bool) {
	var weights int
	for _, k := range s.kinds {
		if k.lane == of {
			weights += k.weight
		}
	}
	if weights == 0 {
		return kind{}, false
	}
	n := r.IntN(weights)
	i := slices.IndexFunc(s.kinds, func(k kind) bool {
		if k.lane != of {
			return false
		}
		n -= k.weight
		return n < 0
	})
	return s.kinds[i], true
}

func (s *schedule) strike(ctx context.Context, k kind, x *strike) {
	x.kind, x.lane, x.people, x.from = k.name, k.lane, s.people, time.Now()
	err := k.strike(ctx, x)
	if x.to.IsZero() {
		x.to = time.Now()
	}
	if s.world.Verbose {
		s.say("%s, %.1fs, healed after %.1fs", x, x.to.Sub(x.from).Seconds(),
			max(0, x.healed.Sub(x.to).Seconds()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strikes = append(append(s.strikes, x), x.parts...)
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("%s at %s: %w", k.name, x.from.Format(clockFormat), err))
		s.say("%s: %v", k.name, err)
	}
}

func (s *schedule) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.strikes)
}
