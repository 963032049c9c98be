package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/pgtest"
)

func TestMain(m *testing.M) {
	runNode()
	os.Exit(m.Run())
}

// briefly reports the faults that TestEachFault strikes. It leaves out what providers do wrong,
// except for the hiccup, since consumers/refresh tests that step by step. It also leaves out the
// fault that takes minutes, which is too long here.
func briefly(k kind) bool {
	return (k.lane != providerLane || k.name == hiccup) && k.name != longStall
}

// TestEachFault strikes each fault of workers, servers and operators once, one after the other, in
// the order of the table, and then the faults of users at once. It uses the built binary, three
// NATS servers, PostgreSQL, real signals, clocks that step and cut connections. After each fault,
// all users are renewed again. At the end the audit finds nothing that must not happen, and then
// the keyring is lost.
func TestEachFault(t *testing.T) {
	o := options{
		Seed:    1,
		Users:   40,
		Life:    8 * time.Second,
		Store:   storePostgres,
		Nodes:   3,
		Workers: 3,
		Dir:     t.TempDir(),
	}
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
			ofUsers := k.lane == userLane || k.lane == eraseLane
			if !briefly(k) || ofUsers != atOnce {
				continue
			}
			t.Run(k.name, func(t *testing.T) {
				if atOnce {
					t.Parallel()
				}
				x := &strike{
					world:  trial.world,
					rand:   rand.New(rand.NewPCG(o.Seed, uint64(i))),
					worker: trial.world.workers[i%3],
					brief:  true,
				}
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

// renewedAgain waits until a tenth of all people were renewed from now on, by any worker.
func renewedAgain(ctx context.Context, t *trial) error {
	from := time.Now()
	return eventually(ctx, time.Minute, func() error {
		seen := map[string]bool{}
		for id, p := range t.world.providers {
			for _, shown := range p.seen.list() {
				if shown.Verdict == standin.Renewed && shown.At.After(from) {
					seen[id+shown.User] = true
				}
			}
		}
		if len(seen) < len(t.folks.all)/10 {
			return fmt.Errorf("%d of %d people were renewed since the fault", len(seen),
				len(t.folks.all))
		}
		return nil
	})
}
