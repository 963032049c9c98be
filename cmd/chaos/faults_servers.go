package main

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"time"

	"github.com/renewd/renewd/internal/testkit/link"
	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/topology"
)

// natsBack waits until the streams and the renewal durables have a leader again.
func (x *strike) natsBack(ctx context.Context) error {
	x.to = time.Now()
	err := eventually(context.WithoutCancel(ctx), time.Minute, func() error {
		return x.world.leaders(ctx)
	})
	x.healed = time.Now()
	return err
}

// leaders returns an error until the streams and the renewal durables have a leader.
func (w *world) leaders(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, name := range []string{
		topology.Logins, topology.Requests, topology.Outcomes, topology.Parked,
	} {
		if _, err := w.js.Stream(ctx, name); err != nil {
			return err
		}
	}
	s, err := w.js.Stream(ctx, topology.Renewals)
	if err != nil {
		return err
	}
	for id := range w.providers {
		if _, err := s.Consumer(ctx, topology.ConsumerRenew(id)); err != nil {
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

// killLeader kills the server that leads RENEWALS.
func killLeader(ctx context.Context, x *strike) error {
	s, err := x.world.js.Stream(ctx, topology.Renewals)
	if err != nil {
		return nil // no leader now: another fault is at work
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

// partition cuts a server off from the other servers. Its clients stay connected.
func partition(ctx context.Context, x *strike) error {
	n := x.world.nodes[x.rand.IntN(len(x.world.nodes))]
	how := []link.State{link.Refusing, link.Hanging}[x.rand.IntN(2)]
	err := setAll(n.links, how)
	x.last(ctx, 3*time.Second, 10*time.Second)
	return errors.Join(err, setAll(n.links, link.Passing), x.natsBack(ctx))
}

func setAll(links []*link.Link, s link.State) (err error) {
	for _, l := range links {
		err = errors.Join(err, l.Set(s))
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

func cutDatabase(how link.State) func(context.Context, *strike) error {
	return func(ctx context.Context, x *strike) error {
		x.outage = true
		var links []*link.Link
		for _, k := range x.world.workers {
			links = append(links, k.database)
		}
		err := setAll(links, how)
		x.last(ctx, time.Second, 8*time.Second)
		err = errors.Join(err, setAll(links, link.Passing))
		x.healed = time.Now()
		return err
	}
}

func cutWorker(ctx context.Context, x *strike) error {
	l := x.world.workers[x.rand.IntN(len(x.world.workers))].database
	err := l.Set([]link.State{link.Refusing, link.Hanging}[x.rand.IntN(2)])
	x.last(ctx, 2*time.Second, 12*time.Second)
	return errors.Join(err, l.Set(link.Passing))
}
