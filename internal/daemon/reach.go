package daemon

import (
	"context"
	"time"
)

// reachLimit bounds the first call to one provider.
const reachLimit = 15 * time.Second

// reach says at the start which providers do not answer: the first renewal may be an hour away. No
// token is shown to a provider.
func (p *Resources) reach(ctx context.Context) error {
	for _, s := range p.Conf.Providers {
		client, err := p.Client(s)
		if err != nil {
			return err
		}
		call, cancel := context.WithTimeout(ctx, reachLimit)
		if err := client.Reach(call); err != nil && ctx.Err() == nil {
			p.log.Warn("a provider does not answer", "provider", s.ID, "error", err,
				"hint", "is its address right, and can it be reached from here? "+
					"Renewals wait for it, and sign no one out")
		}
		cancel()
		client.Close()
	}
	return nil
}
