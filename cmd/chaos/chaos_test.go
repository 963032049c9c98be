package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/pgtest"
)

func TestMain(m *testing.M) {
	runNode()
	os.Exit(m.Run())
}

// briefly are the faults that TestEachFault leaves out: what providers do wrong is tested step by
// step in consumers/refresh, but for what all users of one would feel; and minutes are too long
// here.
func briefly(k kind) bool { return (k.lane != providerLane || k.name == hiccup) && k.name != longStall }

// Each fault of workers, servers and operators once, one after the other, in the order of the
// table, and then those of users at once: the built binary, three NATS servers, PostgreSQL, real
// signals, clocks that step, cut connections. After each, everybody is renewed again; at the end
// the audit finds nothing that must not happen, and then the keyring is lost.
func TestEachFault(t *testing.T) {
	o := options{Seed: 1, Users: 40, Life: 8 * time.Second, Store: storePostgres, Nodes: 3, Workers: 3, Dir: t.TempDir()}
	trial, err := begin(t.Context(), o, t.Output())
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer trial.world.close()
	each := func(t *testing.T, atOnce bool) {
		for i, k := range kinds(o) {
			if !briefly(k) || (k.lane == userLane) != atOnce {
				continue
			}
			t.Run(k.name, func(t *testing.T) {
				if atOnce {
					t.Parallel()
				}
				x := &strike{world: trial.world, rand: rand.New(rand.NewPCG(o.Seed, uint64(i))), worker: trial.world.workers[i%3], brief: true}
				if k.lane == providerLane {
					x.provider = trial.world.providers[[]string{graceful, strict}[i%2]]
				}
				if k.lane != workerLane && k.lane != slowLane {
					x.worker = nil
				}
				trial.plan.strike(t.Context(), k, x)
				if err := renewedAgain(t.Context(), trial); err != nil {
					t.Error(err)
				}
			})
		}
	}
	each(t, false)
	t.Run("at once", func(t *testing.T) { each(t, true) })
	r, err := trial.finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Counts {
		if c.Found > 0 {
			t.Errorf("%s: %d %q", c.Name, c.Found, c.Cases)
		}
	}
	for _, e := range r.Errors {
		t.Error(e)
	}
	if r.Facts.Renewals < 2*len(trial.folks.all) || r.Facts.Presentations < r.Facts.Renewals {
		t.Errorf("%+v", r.Facts)
	}
}

// renewedAgain waits until a tenth of all people were renewed from now on: by whoever has their
// renewals now.
func renewedAgain(ctx context.Context, t *trial) error {
	from := time.Now()
	return eventually(ctx, time.Minute, func() error {
		seen := map[string]bool{}
		for id, p := range t.world.providers {
			for _, shown := range p.seen.list() {
				if shown.Verdict == idptest.Renewed && shown.At.After(from) {
					seen[id+shown.User] = true
				}
			}
		}
		if len(seen) < len(t.folks.all)/10 {
			return fmt.Errorf("%d of %d people were renewed since the fault", len(seen), len(t.folks.all))
		}
		return nil
	})
}
