// Command chaos puts renewd to the test. It starts providers, a NATS cluster, PostgreSQL and
// several `renewd serve`, and has thousands of users renewed. Meanwhile it kills, stalls, cuts off
// and restarts all of them by a seeded schedule. At the end it compares the provider's truth, the
// store, the streams and the commands with one another.
//
// Chaos prints a table and exits with 1 if an event happened that must not. It touches only
// processes and files of its own, and removes them at the end. The same seed draws the same faults,
// but the moments of their strikes depend on the machine.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
)

// Where grants are kept.
const (
	storePostgres = "postgres"
	storeKV       = "natskv"
)

// options are the settings of a run.
type options struct {
	For         time.Duration `default:"20m" help:"How long faults strike."`
	Strikes     int           `help:"End after this many faults, if that comes first."`
	Seed        uint64        `help:"Draws the faults. Default: a new one each time."`
	Users       int           `default:"1000" help:"Users of each of the two providers."`
	Life        time.Duration `default:"45s" help:"Life of an access token."`
	Store       string        `enum:"postgres,natskv" default:"postgres" help:"Where grants are kept: postgres or natskv."`
	Nodes       int           `enum:"1,3" default:"3" help:"NATS servers: 1 or 3."`
	Workers     int           `default:"3" help:"Processes of renewd serve."`
	Only        []string      `placeholder:"TEXT" help:"Only faults with one of these in their name, for instance: killed."`
	WorkerGap   time.Duration `default:"2500ms" help:"Middle pause between faults of workers."`
	ServerGap   time.Duration `default:"3s" help:"Middle pause between faults of NATS and PostgreSQL."`
	ProviderGap time.Duration `default:"15s" help:"Middle pause between faults of one provider."`
	RollGap     time.Duration `default:"45s" help:"Middle pause between what is done to all workers, one after the other."`
	UserGap     time.Duration `default:"5s" help:"Middle pause between what users, apps and strangers do wrong."`
	SlowGap     time.Duration `default:"15s" help:"Middle pause between what holds one worker for long: clocks that step, stalls of minutes."`
	Outage      time.Duration `help:"Begin with an outage of both providers of this length, which workers and servers are struck in as well."`
	Binary      string        `placeholder:"FILE" help:"The renewd to test. Default: built from this module."`
	Dir         string        `placeholder:"DIR" help:"Folder to work in. Default: the system's for temporary files."`
	Verbose     bool          `short:"v" help:"Tell of each fault."`
	Keep        bool          `help:"Leave logs and data behind."`
	Output      string        `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

func main() {
	runNode()
	var o options
	kong.Parse(&o, kong.Description("Kill, stall, cut off and restart everything that renewd "+
		"runs on, and count what must not happen."))
	if o.Seed == 0 {
		o.Seed = rand.Uint64N(1_000_000)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, o, os.Stderr)
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
	if o.Output == "json" {
		err = json.NewEncoder(os.Stdout).Encode(r)
	} else {
		r.print(os.Stdout)
	}
	if err != nil || r.failed() > 0 {
		os.Exit(1)
	}
}

// run does the whole trial and returns its report.
func run(ctx context.Context, o options, progress io.Writer) (*report, error) {
	chosen := o.choose(kinds(o))
	if len(chosen) == 0 && !o.wants(keyringLost) {
		return nil, fmt.Errorf("--only %s: no fault has such a name", strings.Join(o.Only, ","))
	}
	t, err := begin(ctx, o, progress)
	if err != nil {
		return nil, err
	}
	defer t.world.close()
	t.plan.kinds = chosen
	t.plan.disturb(ctx, t.folks, t.eyes)
	return t.finish(ctx)
}

// trial is one run.
type trial struct {
	began time.Time
	say   func(string, ...any)
	world *world
	folks *people
	eyes  *witness
	plan  *schedule
	looks *sampler
	reads *readers
	rest  context.CancelFunc // ends witness and sampler
	ended chan error

	endReads context.CancelFunc
	readings sync.WaitGroup
}

// begin starts all processes, and has all people sign in.
func begin(ctx context.Context, o options, progress io.Writer) (*trial, error) {
	t := &trial{began: time.Now(), ended: make(chan error, 2)}
	t.say = func(format string, args ...any) {
		fmt.Fprintf(progress, "%s %6.1fs  %s\n", time.Now().Format("15:04:05"),
			time.Since(t.began).Seconds(), fmt.Sprintf(format, args...))
	}
	var err error
	if t.world, err = newWorld(ctx, o, t.say); err != nil {
		return nil, err
	}
	if t.folks, err = newPeople(t.world, t.say); err != nil {
		t.world.close()
		return nil, err
	}
	if err := t.world.enrol(ctx, t.folks.all); err != nil {
		t.world.close()
		return nil, err
	}
	t.eyes = &witness{people: t.folks, ids: map[string]bool{}}
	t.plan = &schedule{world: t.world, people: t.folks, say: t.say}
	t.looks = &sampler{world: t.world, counted: map[life]float64{}}
	if t.reads, err = newReaders(t.world, t.folks); err != nil {
		t.world.close()
		return nil, err
	}
	ctx, t.rest = context.WithCancel(context.WithoutCancel(ctx))
	go func() { t.ended <- t.eyes.listen(ctx) }()
	go func() { t.looks.run(ctx); t.ended <- nil }()
	t.say("seed %d: %d users sign in", o.Seed, len(t.folks.all))
	t.folks.everybodySignsIn(ctx)
	ctx, t.endReads = context.WithCancel(ctx)
	t.readings.Go(func() { t.reads.run(ctx) })
	return t, nil
}

// finish waits until all work has settled, and runs the audit.
func (t *trial) finish(ctx context.Context) (*report, error) {
	t.endReads()
	t.readings.Wait()
	t.world.ended = time.Now()
	a := &audit{world: t.world, people: t.folks, schedule: t.plan, read: t.reads}
	t.folks.gone.Store(true)
	if err := a.heal(ctx); err != nil {
		return nil, err
	}
	unerased := t.folks.eraseAgain(ctx)
	settled, err := a.settle(ctx, t.eyes, t.say)
	t.plan.errs = append(t.plan.errs, unerased, err, a.brought(ctx))
	a.emptyHands(ctx, "")
	if err := a.stop(ctx); err != nil {
		return nil, err
	}
	a.heard, a.ids = t.eyes.all(a.published)
	a.everything(ctx, t.eyes, t.looks)
	if t.world.wants(keyringLost) {
		t.say("the keyring is lost")
		t.plan.errs = append(t.plan.errs, a.keyringLost(ctx, t.eyes))
	}
	t.rest()
	if err := errors.Join(<-t.ended, <-t.ended); err != nil {
		t.plan.errs = append(t.plan.errs, fmt.Errorf("listening to outcomes: %w", err))
	}
	return a.report(time.Since(t.began), settled, t.looks.thirds()), nil
}

func (o options) choose(all []kind) []kind {
	return slices.DeleteFunc(all, func(k kind) bool { return !o.wants(k.name) })
}

// wants reports whether a fault of this name may strike.
func (o options) wants(name string) bool {
	return len(o.Only) == 0 ||
		slices.ContainsFunc(o.Only, func(text string) bool { return strings.Contains(name, text) })
}

// disturb strikes faults while people live, and reports progress.
func (s *schedule) disturb(ctx context.Context, folks *people, eyes *witness) {
	o := s.world.options
	ctx, cancel := context.WithTimeout(ctx, o.For)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { folks.live(ctx, o.Seed) })
	wg.Go(func() { s.outage(ctx, o.Outage); s.run(ctx, o.Seed) })
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for told := 0; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-tick.C:
			eyes.mu.Lock()
			n, wrong := len(eyes.heard), len(eyes.wrong)
			for ; told < wrong; told++ {
				s.say("%s", eyes.wrong[told])
			}
			eyes.mu.Unlock()
			renewals := 0
			for _, p := range s.world.providers {
				renewals += p.Stats().Rotated
			}
			s.say("%d faults, %d renewals, %d outcomes, %d signed out by mistake", s.count(),
				renewals, n, wrong)
			if o.Strikes > 0 && s.count() >= o.Strikes {
				cancel()
			}
		}
	}
	wg.Wait()
}

// outage has both providers answer 503 for so long. Faults still strike workers and servers.
func (s *schedule) outage(ctx context.Context, length time.Duration) {
	if length == 0 {
		return
	}
	s.say("both providers are out of order for %v", length)
	within, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	part := &schedule{
		world:  s.world,
		say:    s.say,
		people: s.people,
		kinds: slices.DeleteFunc(slices.Clone(s.kinds), func(k kind) bool {
			return k.lane == providerLane
		}),
	}
	var wg sync.WaitGroup
	for id, p := range s.world.providers {
		wg.Go(func() {
			s.strike(within,
				kind{name: "provider answers 503 for " + length.String(), strike: long503}, &strike{
					world:    s.world,
					provider: p,
				})
			s.say("%s is back", id)
		})
	}
	wg.Go(func() { part.run(within, s.world.Seed+1) })
	wg.Wait()
	s.mu.Lock()
	s.strikes, s.errs = append(s.strikes, part.strikes...), append(s.errs, part.errs...)
	s.mu.Unlock()
}

func (a *audit) report(took, settled time.Duration, m memory) *report {
	w := a.world
	r := &report{
		Seed:     w.Seed,
		Took:     took,
		Users:    len(a.people.all),
		Store:    w.Store,
		Nodes:    len(w.nodes),
		Workers:  len(w.workers),
		Faults:   map[string]int{},
		Facts:    a.facts,
		Settled:  settled,
		Counts:   a.counts,
		Recovery: a.recovery(),
		Memory:   m,
	}
	for _, x := range a.schedule.strikes {
		r.Faults[x.kind]++
	}
	for _, name := range slices.Collect(maps.Keys(r.Recovery)) {
		if len(r.Recovery[name]) == 0 {
			delete(r.Recovery, name)
		}
	}
	for _, err := range a.schedule.errs {
		if err != nil {
			r.Errors = append(r.Errors, err.Error())
		}
	}
	return r
}
