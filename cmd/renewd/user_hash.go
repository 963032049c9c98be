package main

import (
	"context"
	"fmt"

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

type userHash struct {
	User string `arg:"" help:"The user's id, as the provider writes it."`
}

// Run prints the hash. It needs the store keys and nothing else.
func (u userHash) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if err := schema.CheckUser(u.User); err != nil {
		return settings.Mistake(err)
	}
	ring, err := keyfile.Of(conf).LoadOnly(ctx, seal.UseStore)
	if err != nil {
		return a.keysHint(err)
	}
	_, err = fmt.Fprintln(a.stdout, pseudonym.Hash(ring.NamesKey(), u.User))
	return err
}
