package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// due is when a person's timer fires, or false if the person has no timer.
func (p *people) due(ctx context.Context, x *person) (time.Time, bool) {
	s, err := p.world.js.Stream(ctx, topology.Renewals)
	if err != nil {
		return time.Time{}, false
	}
	m, err := s.GetLastMsgForSubject(ctx, x.subject("renewal.timer"))
	if err != nil {
		return time.Time{}, false
	}
	var at time.Time
	err = at.UnmarshalText([]byte(trimAt(m.Header.Get("Nats-Schedule"))))
	return at, err == nil
}

func trimAt(schedule string) string {
	const at = "@at "
	if len(schedule) < len(at) {
		return ""
	}
	return schedule[len(at):]
}

// meet has a timer, two requests, a login and an erasure of one user come within milliseconds.
func meet(ctx context.Context, x *strike) error {
	x.unfelt = true
	victims := x.people.some(x.rand, x.count(8, 20))
	seeds := map[*person]uint64{}
	for _, v := range victims {
		seeds[v] = x.rand.Uint64()
	}
	done := context.WithoutCancel(ctx)
	x.people.eachOf(victims, 8, func(v *person) { // each erasure waits 12 s
		if at, ok := x.people.due(ctx, v); ok && time.Until(at) < x.world.Life/2 {
			select {
			case <-ctx.Done():
			case <-time.After(time.Until(at) - 20*time.Millisecond):
			}
		}
		x.people.meetOn(done, v, rand.New(rand.NewPCG(seeds[v], 0)))
	})
	return nil
}

// meetOn does the work of meet on a person. The caller holds v.mu.
func (p *people) meetOn(ctx context.Context, v *person, r *rand.Rand) {
	var wg sync.WaitGroup
	soon := func(do func()) {
		wait := time.Duration(r.IntN(40)) * time.Millisecond
		wg.Go(func() {
			<-time.After(wait)
			do()
		})
	}
	soon(func() { p.ask(ctx, v, p.apps[0], newID(schema.UserRefreshDue), schema.RefreshDue{}) })
	soon(func() {
		p.ask(ctx, v, p.apps[1], newID(schema.UserRefreshDue), schema.RefreshDue{
			Want: schema.WantTokens,
		})
	})
	signsIn, erased := r.IntN(3) > 0, r.IntN(3) == 0
	if signsIn {
		p.open(v)
		soon(func() { p.tell(ctx, v, p.apps[0]) })
	}
	if erased {
		wg.Go(func() { erased = p.erase(ctx, v) })
	}
	wg.Wait()
	switch {
	case !v.erasing[0].IsZero() && erased:
		p.settleOrder(v)
	case v.erasing[0].After(v.opened):
		v.unsure = true // the erasure gave up
	}
}
