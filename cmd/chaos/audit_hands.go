package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/topology"
)

// durables are the workers' JetStream consumers, by name, each with its stream.
func (w *world) durables() map[string]string {
	all := map[string]string{
		topology.ConsumerLogin:   topology.Logins,
		topology.ConsumerRequest: topology.Requests,
	}
	for id := range w.providers {
		all[topology.ConsumerRenew(id)] = topology.Renewals
	}
	return all
}

// emptyHands checks that workers release every message they took. Workers still run, so a durable
// without a pending message for an instant is enough.
func (a *audit) emptyHands(ctx context.Context, when string) {
	c := a.count(when + "streams of which a message stays in a worker's hand")
	var wg sync.WaitGroup
	var mu sync.Mutex
	for durable, name := range a.world.durables() {
		wg.Go(func() {
			err := eventually(ctx, 30*time.Second, func() error {
				info, err := a.consumer(ctx, name, durable)
				if err == nil && info.NumAckPending > 0 {
					err = fmt.Errorf("%d of %s %w", info.NumAckPending, name, errUnsettled)
				}
				return err
			})
			if err != nil {
				mu.Lock()
				c.add("%s: %v", durable, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

func (a *audit) consumer(
	ctx context.Context, name, durable string,
) (*jetstream.ConsumerInfo, error) {
	consumer, err := a.world.js.Consumer(ctx, name, durable)
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo(), nil
}
