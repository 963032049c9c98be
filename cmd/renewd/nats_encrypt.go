package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
)

type natsEncrypt struct {
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run encrypts. It may be cut short at any time: the files are as they were, or encrypted.
func (n natsEncrypt) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if !conf.Embedded() {
		return settings.Mistake(errors.New("NATS does not run inside renewd here: " +
			"its server has a setting for its files, jetstream { key: … }"))
	}
	done, err := daemon.EncryptFiles(ctx, conf)
	if errors.Is(err, natsd.ErrInUse) {
		return fmt.Errorf("%w: stop it first", err)
	}
	if err != nil {
		return err
	}
	if n.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(done)
	}
	_, err = fmt.Fprintf(a.stdout,
		"encrypted %s with %s: only the keyring opens them from now on\n",
		plain.Plural(done.Streams, "stream"), plain.Plural(int(done.Messages), "message"))
	return err
}
