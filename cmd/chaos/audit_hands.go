package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/stream"
)

// durables are what workers take their work from, by name and stream.
func (w *world) durables() map[string]string {
	all := map[string]string{stream.ConsumerLogin: stream.Logins, stream.ConsumerRequest: stream.Requests}
	for id := range w.providers {
		all[stream.ConsumerRenew(id)] = stream.Renewals
	}
	return all
}

// emptyHands looks whether every message that was taken is let go of again. Workers still run, so a
// durable need be without one for an instant only.
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

func (a *audit) consumer(ctx context.Context, name, durable string) (*jetstream.ConsumerInfo, error) {
	consumer, err := a.world.js.Consumer(ctx, name, durable)
	if err != nil {
		return nil, err
	}
	return consumer.CachedInfo(), nil
}
