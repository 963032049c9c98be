package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
)

type standInCommand struct {
	Listen   string        `default:"127.0.0.1:7470" placeholder:"HOST:PORT" help:"Where to listen. Default: 127.0.0.1:7470."`
	Lifetime time.Duration `type:"duration" default:"30s" placeholder:"DURATION" help:"Life of an access token. Default: 30s."`
	Rotation string        `enum:"strict,grace,never" default:"strict" help:"What a refresh does to the refresh token: strict, grace or never."`
	ClientID string        `default:"renewd-dev" help:"Client id that it takes."`
}

// Run serves the stand-in until ctx ends. Its admin endpoints are on: it is nobody's real provider.
func (s standInCommand) Run(ctx context.Context, a *app) error {
	l, err := listen(ctx, s.Listen)
	if err != nil {
		return err
	}
	server := idptest.New(idptest.Options{Lifetime: s.Lifetime, Rotation: idptest.Rotation(s.Rotation), ClientID: s.ClientID, Admin: true})
	fmt.Fprintf(a.stdout, `a stand-in for PropelAuth listens on http://%s

  sign a user in, and give the tokens to renewd:
    curl -s -X POST -d user=u1 http://%[1]s/_admin/login | %[2]s publish login --user u1 --tokens-file - --wait
  end the user's sessions:   curl -s -X POST -d user=u1 http://%[1]s/_admin/end
  see what it was asked:     curl -s http://%[1]s/_admin/stats

`, l.Addr(), a.name)
	return serveHTTP(ctx, l, server, slog.New(slog.DiscardHandler))
}
