package stream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/topology"
)

// Pause delivers no due renewal of the provider, to any worker, before until. A past time resumes
// at once.
func (e *Engine) Pause(ctx context.Context, provider string, until time.Time) error {
	_, err := e.js.PauseConsumer(ctx, e.config.Subjects.Name(topology.Renewals),
		topology.ConsumerRenew(provider), until)
	if err != nil {
		return fmt.Errorf("pause renewals of %s: %w", provider, err)
	}
	return nil
}

// Limit sets how many due renewals of the provider may be handled at a time over all workers.
func (e *Engine) Limit(ctx context.Context, provider string, inHand int) error {
	name := e.config.Subjects.Name(topology.Renewals)
	c, err := e.js.Consumer(ctx, name, topology.ConsumerRenew(provider))
	if err != nil {
		return fmt.Errorf("limit renewals of %s: %w", provider, err)
	}
	config := c.CachedInfo().Config
	if config.MaxAckPending == inHand {
		return nil
	}
	config.MaxAckPending = inHand
	if _, err := e.js.UpdateConsumer(ctx, name, config); err != nil {
		return fmt.Errorf("limit renewals of %s to %d: %w", provider, inHand, err)
	}
	return nil
}

// Waiting counts the provider's due renewals that no worker is handling.
func (e *Engine) Waiting(ctx context.Context, provider string) (int64, error) {
	c, err := e.js.Consumer(ctx, e.config.Subjects.Name(topology.Renewals),
		topology.ConsumerRenew(provider))
	if err != nil {
		return 0, fmt.Errorf("count renewals of %s: %w", provider, err)
	}
	return int64(c.CachedInfo().NumPending), nil
}

// AckFloor is the sequence in RENEWALS up to which all of the provider's renewals are acknowledged;
// 0 for a provider without a durable there.
func (e *Engine) AckFloor(ctx context.Context, provider string) (uint64, error) {
	durable := topology.ConsumerRenew(provider)
	c, err := e.js.Consumer(ctx, e.config.Subjects.Name(topology.Renewals), durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look how far %s is: %w", durable, err)
	}
	return c.CachedInfo().AckFloor.Stream, nil
}
