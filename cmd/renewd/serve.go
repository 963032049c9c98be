package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
)

type serveCommand struct{}

// Run runs renewd until ctx ends, then drains.
func (serveCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if len(conf.Providers) == 0 {
		return settings.Mistake(errors.New("no provider is set: set RENEWD_AUTH_URL and " +
			"RENEWD_CLIENT_ID, or list providers in the file that RENEWD_CONFIG names; " +
			"to try renewd without one: " + a.name + " dev"))
	}
	return a.serve(ctx, conf, daemon.Options{Log: daemon.NewLogger(a.stderr, conf)})
}

// serve runs a daemon until ctx ends or a part of it fails.
func (a *app) serve(ctx context.Context, conf *settings.Settings, o daemon.Options) error {
	o.Environ, o.Version, o.Erase = a.environ, version, eraseFor
	d, err := daemon.Open(ctx, conf, o)
	if err != nil {
		return err
	}
	a.names = d.Names()
	return d.Run(ctx)
}

// eraseFor is renewd user forget for a client over HTTP, or for a source: /clients/crm is a client,
// /sources/propel a source.
func eraseFor(ctx context.Context, p *daemon.Resources, k grant.Key, source string) error {
	kind, name, _ := strings.Cut(strings.TrimPrefix(source, "/"), "/")
	by := strings.TrimSuffix(kind, "s") + " " + name
	err := admin.Erase(ctx, p, admin.Erasure{Key: k, By: by, Source: source})
	switch {
	case errors.Is(err, admin.ErrUnknown):
		return fmt.Errorf("%w: %w", grant.ErrNotFound, err)
	case errors.Is(err, stream.ErrMayNotErase):
		return fmt.Errorf("%w: %w", api.ErrNotAllowed, err)
	}
	return err
}
