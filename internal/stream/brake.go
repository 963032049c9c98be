package stream

import (
	"context"
	"fmt"
	"time"
)

// Pause delivers no due renewal of the provider, to any worker, before until. A time that has
// passed resumes at once.
func (e *Engine) Pause(ctx context.Context, provider string, until time.Time) error {
	if _, err := e.js.PauseConsumer(ctx, e.config.Subjects.Name(Renewals), ConsumerRenew(provider), until); err != nil {
		return fmt.Errorf("pause renewals of %s: %w", provider, err)
	}
	return nil
}

// Limit sets how many due renewals of the provider may be in hand over all workers.
func (e *Engine) Limit(ctx context.Context, provider string, inHand int) error {
	name := e.config.Subjects.Name(Renewals)
	c, err := e.js.Consumer(ctx, name, ConsumerRenew(provider))
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

// Waiting counts the provider's due renewals that no worker has in hand.
func (e *Engine) Waiting(ctx context.Context, provider string) (int64, error) {
	c, err := e.js.Consumer(ctx, e.config.Subjects.Name(Renewals), ConsumerRenew(provider))
	if err != nil {
		return 0, fmt.Errorf("count renewals of %s: %w", provider, err)
	}
	return int64(c.CachedInfo().NumPending), nil
}
