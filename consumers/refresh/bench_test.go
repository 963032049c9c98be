package refresh_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// BenchmarkRenewal is what this package itself costs for one renewal, with all servers in memory: a
// timer that is due, which goes straight to the claim; a request for new tokens, which loads first;
// and a request for the profile alone.
func BenchmarkRenewal(b *testing.B) {
	request := func(w *world, n int, want string) grant.Work {
		next := work("r" + strconv.Itoa(n))
		next.Want, next.Cause.Time = want, w.now()
		return next
	}
	for name, bench := range map[string]struct {
		every time.Duration
		work  func(w *world, n int) grant.Work
	}{
		"timer": {
			81 * time.Second,
			func(w *world, _ int) grant.Work { return w.timers[key].work },
		},
		"tokens": {
			81 * time.Second,
			func(w *world, n int) grant.Work { return request(w, n, schema.WantTokens) },
		},
		"profile": {
			time.Microsecond,
			func(w *world, n int) grant.Work { return request(w, n, schema.WantProfile) },
		},
	} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			w.login("a", time.Second)
			w.settle(work("first"), 1)
			c := w.consumer()
			b.ReportAllocs()
			for n := range b.N {
				w.advance(bench.every)
				current.Store(w, bench.work(w, n))
				w.outcomes = w.outcomes[:0]
				if err := c.Handle(b.Context(), message(1)); err != nil {
					b.Fatal(err)
				}
				token := mustStored(w).Pair.Refresh.Reveal()
				f := w.families[token]
				clear(w.families) // else they grow with the number of rounds
				w.families[token] = f
			}
			rotates := bench.every > time.Second
			if rotates && w.refreshed != b.N+1 || !rotates && w.refreshed != 1 {
				b.Fatalf("%d rotations in %d renewals", w.refreshed-1, b.N)
			}
		})
	}
}
