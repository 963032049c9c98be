package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/internal/pgtest"
	"github.com/renewd/renewd/internal/stream"
)

// lane is what faults of one kind share: they come one after the other.
type lane string

const (
	workerLane   lane = "worker"
	serverLane   lane = "server"
	providerLane lane = "provider"
)

// kind is one way for things to go wrong.
type kind struct {
	name   string
	lane   lane
	weight int
	// strike does it, and heals it before it returns. victim is a worker's number, or a provider's id.
	strike func(ctx context.Context, x *strike) error
}

// strike is one fault as it happens.
type strike struct {
	world    *world
	rand     *rand.Rand
	worker   *worker  // in workerLane
	provider *standIn // in providerLane
	brief    bool     // as short as faults of its kind are

	kind     string
	from, to time.Time
	lost     bool      // whoever was struck may have lost what it had in hand
	outage   bool      // nobody could be renewed meanwhile
	healed   time.Time // when all servers were back
}

func (x *strike) String() string {
	text := x.kind
	switch {
	case x.worker != nil:
		text += " (" + x.worker.name + ")"
	case x.provider != nil:
		text += " (" + x.provider.id + ")"
	}
	return text + " at " + x.from.Format(clockFormat)
}

// between draws a duration; the schedule is made of these alone.
func (x *strike) between(from, to time.Duration) time.Duration {
	if x.brief {
		return from
	}
	return from + time.Duration(x.rand.Int64N(int64(to-from)+1))
}

// last waits; a fault is healed at once when ctx ends.
func (x *strike) last(ctx context.Context, from, to time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(x.between(from, to)):
	}
}

// killed is the fault that all the rest is about.
const killed = "worker killed"

// kinds is every fault there is.
func kinds(postgres bool, nodes int) []kind {
	all := []kind{
		{killed, workerLane, 14, killWorker},
		{"worker stalled shortly", workerLane, 2, stallWorker(time.Second, 5*time.Second, false)},
		{"worker stalled past its lease", workerLane, 2, stallWorker(12*time.Second, 16*time.Second, true)},
		{"worker stopped in order", workerLane, 2, stopWorker},
		{"NATS server killed", serverLane, 4, killNode},
		{"all NATS servers killed", serverLane, 3, killNodes},
		{"NATS server stalled", serverLane, 2, stallNode},
		{"provider answers 503", providerLane, 3, answers(5*time.Second, 15*time.Second, idptest.Fault{Status: 503})},
		{"provider hangs", providerLane, 1, answers(4*time.Second, 10*time.Second, idptest.Fault{Hang: true})},
		{"provider slow", providerLane, 2, answers(5*time.Second, 10*time.Second, idptest.Fault{Delay: 1500 * time.Millisecond})},
		{"provider throttles", providerLane, 2, answers(5*time.Second, 10*time.Second, idptest.Fault{Status: 429, Header: http.Header{"Retry-After": {"2"}}})},
		{"provider refuses the client", providerLane, 2, answers(5*time.Second, 12*time.Second, idptest.Fault{Status: 401, Body: `{"error":"invalid_client"}`})},
		{"provider refuses everybody", providerLane, 2, answers(8*time.Second, 15*time.Second, idptest.Fault{Status: 400, Body: `{"error":"invalid_grant"}`})},
		{"provider answers nonsense", providerLane, 1, answers(3*time.Second, 8*time.Second, idptest.Fault{Status: 200, Body: "<html>maintenance</html>"})},
		{"provider flaps", providerLane, 2, flap},
		{"provider's answers lost after rotating", providerLane, 2, some(idptest.Fault{Act: true, Drop: true})},
		{"provider's answers cut in half", providerLane, 1, some(idptest.Fault{Truncate: true})},
		{"provider's requests lost before it", providerLane, 2, some(idptest.Fault{Drop: true})},
	}
	if nodes == 3 {
		all = append(all,
			kind{"NATS leader killed", serverLane, 4, killLeader},
			kind{"NATS server cut off", serverLane, 3, partition})
	}
	if postgres {
		all = append(all,
			kind{"PostgreSQL killed", serverLane, 6, restartDatabase((*pgtest.Server).Kill)},
			kind{"PostgreSQL stopped", serverLane, 5, restartDatabase((*pgtest.Server).Stop)},
			kind{"PostgreSQL refuses connections", serverLane, 2, cutDatabase(refusing)},
			kind{"PostgreSQL hangs", serverLane, 2, cutDatabase(hanging)},
			kind{"worker cut off from PostgreSQL", serverLane, 2, cutWorker})
	}
	return all
}

func killWorker(ctx context.Context, x *strike) error {
	x.lost = true
	x.worker.kill()
	x.to = time.Now()
	x.last(ctx, 0, 1500*time.Millisecond)
	return x.worker.start()
}

func stallWorker(from, to time.Duration, lost bool) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.lost = lost
		x.worker.signal(syscall.SIGSTOP)
		x.last(ctx, from, to)
		x.worker.signal(syscall.SIGCONT)
		return nil
	}
}

func stopWorker(_ context.Context, x *strike) error {
	if err := x.worker.stop(40 * time.Second); err != nil {
		return err
	}
	return x.worker.start()
}

// natsBack waits until every stream and consumer has a leader again.
func (x *strike) natsBack(ctx context.Context) error {
	x.to = time.Now()
	err := eventually(context.WithoutCancel(ctx), time.Minute, func() error { return x.world.leaders(ctx) })
	x.healed = time.Now()
	return err
}

// leaders returns an error until everything that a renewal needs has a leader.
func (w *world) leaders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, name := range []string{stream.Logins, stream.Requests, stream.Outcomes, stream.Parked} {
		if _, err := w.js.Stream(ctx, name); err != nil {
			return err
		}
	}
	s, err := w.js.Stream(ctx, stream.Renewals)
	if err != nil {
		return err
	}
	for id := range w.providers {
		if _, err := s.Consumer(ctx, stream.ConsumerRenew(id)); err != nil {
			return err
		}
	}
	return nil
}

func (x *strike) bounce(ctx context.Context, nodes ...*node) error {
	var all sync.WaitGroup
	for _, n := range nodes {
		all.Go(n.kill)
	}
	all.Wait()
	x.last(ctx, 500*time.Millisecond, 4*time.Second)
	for _, n := range nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	return x.natsBack(ctx)
}

func killNode(ctx context.Context, x *strike) error {
	x.outage = len(x.world.nodes) == 1
	return x.bounce(ctx, x.world.nodes[x.rand.IntN(len(x.world.nodes))])
}

func killNodes(ctx context.Context, x *strike) error {
	x.outage = true
	return x.bounce(ctx, x.world.nodes...)
}

// killLeader kills the server that leads the engine.
func killLeader(ctx context.Context, x *strike) error {
	s, err := x.world.js.Stream(ctx, stream.Renewals)
	if err != nil {
		return nil // none leads right now: somebody else is at it
	}
	if c := s.CachedInfo().Cluster; c != nil {
		for _, n := range x.world.nodes {
			if n.config.Name == c.Leader {
				return x.bounce(ctx, n)
			}
		}
	}
	return nil
}

func stallNode(ctx context.Context, x *strike) error {
	x.outage = len(x.world.nodes) == 1
	n := x.world.nodes[x.rand.IntN(len(x.world.nodes))]
	n.signal(syscall.SIGSTOP)
	x.last(ctx, 2*time.Second, 8*time.Second)
	n.signal(syscall.SIGCONT)
	return x.natsBack(ctx)
}

// partition cuts one server off from the others; its clients are still connected to it.
func partition(ctx context.Context, x *strike) error {
	n := x.world.nodes[x.rand.IntN(len(x.world.nodes))]
	how := []state{refusing, hanging}[x.rand.IntN(2)]
	err := setAll(n.links, how)
	x.last(ctx, 3*time.Second, 10*time.Second)
	return errors.Join(err, setAll(n.links, passing), x.natsBack(ctx))
}

func setAll(links []*link, s state) (err error) {
	for _, l := range links {
		err = errors.Join(err, l.set(s))
	}
	return err
}

func restartDatabase(end func(*pgtest.Server)) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = true
		end(x.world.database)
		x.last(ctx, 200*time.Millisecond, 6*time.Second)
		err := x.world.database.Restart()
		x.healed = time.Now()
		return err
	}
}

func cutDatabase(how state) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = true
		var links []*link
		for _, k := range x.world.workers {
			links = append(links, k.database)
		}
		err := setAll(links, how)
		x.last(ctx, time.Second, 8*time.Second)
		err = errors.Join(err, setAll(links, passing))
		x.healed = time.Now()
		return err
	}
}

func cutWorker(ctx context.Context, x *strike) error {
	l := x.world.workers[x.rand.IntN(len(x.world.workers))].database
	err := l.set([]state{refusing, hanging}[x.rand.IntN(2)])
	x.last(ctx, 2*time.Second, 12*time.Second)
	return errors.Join(err, l.set(passing))
}

// answers has the provider answer every call like this for a while.
func answers(from, to time.Duration, f idptest.Fault) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = f.Delay == 0
		x.provider.SetFault(func(r idptest.Request) *idptest.Fault {
			if f.Status == http.StatusUnauthorized && r.Op != "token" || f.Status == http.StatusBadRequest && r.Op != "token" {
				return nil
			}
			return &f
		})
		x.last(ctx, from, to)
		x.provider.SetFault(nil)
		x.healed = time.Now()
		return nil
	}
}

// long503 is an outage that lasts until ctx ends.
func long503(ctx context.Context, x *strike) error {
	x.outage = true
	x.provider.SetFault(func(idptest.Request) *idptest.Fault { return &idptest.Fault{Status: http.StatusServiceUnavailable} })
	<-ctx.Done()
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}

// some has one token call in five go wrong.
func some(f idptest.Fault) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		var n atomic.Int64
		x.provider.SetFault(func(r idptest.Request) *idptest.Fault {
			if r.Op == "token" && n.Add(1)%5 == 0 {
				return &f
			}
			return nil
		})
		x.last(ctx, 5*time.Second, 12*time.Second)
		x.provider.SetFault(nil)
		return nil
	}
}

// flap has the provider come and go, three times a second.
func flap(ctx context.Context, x *strike) error {
	x.provider.SetFault(func(idptest.Request) *idptest.Fault {
		if time.Now().UnixMilli()/333%2 == 0 {
			return &idptest.Fault{Status: http.StatusBadGateway}
		}
		return nil
	})
	x.last(ctx, 5*time.Second, 12*time.Second)
	x.provider.SetFault(nil)
	x.healed = time.Now()
	return nil
}

// schedule strikes, lane by lane, until ctx ends; then everything is healed.
type schedule struct {
	world *world
	kinds []kind
	say   func(string, ...any)

	mu      sync.Mutex
	strikes []*strike
	busy    map[*worker]bool
	errs    []error
}

func (s *schedule) run(ctx context.Context, seed uint64) {
	var wg sync.WaitGroup
	wg.Go(func() { s.workers(ctx, rand.New(rand.NewPCG(seed, 101))) })
	wg.Go(func() {
		s.one(ctx, rand.New(rand.NewPCG(seed, 102)), serverLane, s.world.ServerGap, func(*strike) {})
	})
	for i, id := range []string{graceful, strict} {
		wg.Go(func() {
			s.one(ctx, rand.New(rand.NewPCG(seed, 103+uint64(i))), providerLane, s.world.ProviderGap, func(x *strike) { x.provider = s.world.providers[id] })
		})
	}
	wg.Wait()
}

// one strikes one fault of a lane after the other.
func (s *schedule) one(ctx context.Context, r *rand.Rand, of lane, gap time.Duration, aim func(*strike)) {
	for {
		k, ok := s.draw(r, of)
		x := &strike{world: s.world, rand: rand.New(rand.NewPCG(r.Uint64(), 0))}
		if x.last(ctx, gap/2, 3*gap/2); ctx.Err() != nil || !ok {
			return
		}
		aim(x)
		s.strike(ctx, k, x)
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
		if x.worker = s.claim(pick); x.worker == nil {
			continue
		}
		wg.Go(func() {
			s.strike(ctx, k, x)
			s.mu.Lock()
			delete(s.busy, x.worker)
			s.mu.Unlock()
		})
	}
}

// claim takes the worker of this number, or the next one that nobody is at.
func (s *schedule) claim(n int) *worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.world.workers {
		k := s.world.workers[(n+i)%len(s.world.workers)]
		if !s.busy[k] {
			s.busy[k] = true
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
	x.kind, x.from = k.name, time.Now()
	err := k.strike(ctx, x)
	if x.to.IsZero() {
		x.to = time.Now()
	}
	if s.world.Verbose {
		s.say("%s, %.1fs, healed after %.1fs", x, x.to.Sub(x.from).Seconds(), max(0, x.healed.Sub(x.to).Seconds()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strikes = append(s.strikes, x)
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
