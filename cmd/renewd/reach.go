package main

import "context"

// reach says at the start which providers do not answer: the first renewal may be an hour away. It
// shows them no token.
func (p *plant) reach(ctx context.Context) error {
	for _, s := range p.conf.Providers {
		client, err := p.client(s)
		if err != nil {
			return err
		}
		call, cancel := context.WithTimeout(ctx, checkLimit)
		if err := client.Reach(call); err != nil && ctx.Err() == nil {
			p.log.Warn("a provider does not answer", "provider", s.ID, "error", err,
				"hint", "is its address right, and can it be reached from here? Renewals wait for it, and sign no one out")
		}
		cancel()
		client.Close()
	}
	return nil
}
