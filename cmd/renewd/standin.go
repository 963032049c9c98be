package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

type standInCommand struct {
	clientFlags
	Listen           string        `default:"127.0.0.1:7470" placeholder:"HOST:PORT" help:"Where to listen. Default: 127.0.0.1:7470."`
	Lifetime         time.Duration `type:"duration" default:"30s" placeholder:"DURATION" help:"Life of an access token. Default: 30s."`
	Rotation         string        `enum:"strict,grace,never" default:"strict" help:"What a refresh does to the refresh token: strict, grace or never."`
	ClientID         string        `default:"renewd-dev" help:"Client id that it takes."`
	ClientSecretFile string        `placeholder:"FILE" help:"File with the client secret that it wants. Default: none."`
	Users            int           `default:"0" help:"Be an app too: sign so many users in, publish their logins to NATS, and sign in again who must."`
}

// Run serves the stand-in until ctx ends. Its admin endpoints are on: it is nobody's real provider.
func (s standInCommand) Run(ctx context.Context, a *app, c *cli) error {
	o := idptest.Options{Lifetime: s.Lifetime, Rotation: idptest.Rotation(s.Rotation), ClientID: s.ClientID, Admin: true}
	if s.ClientSecretFile != "" {
		raw, err := os.ReadFile(s.ClientSecretFile)
		if err != nil {
			return usageError{fmt.Errorf("--client-secret-file: %w", err)}
		}
		o.ClientSecret = strings.TrimSpace(string(raw))
	}
	l, err := listen(ctx, s.Listen)
	if err != nil {
		return err
	}
	server := idptest.New(o)
	fmt.Fprintf(a.stdout, `a stand-in for PropelAuth listens on http://%s

  sign a user in, and give the tokens to renewd:
    curl -s -X POST -d user=u1 http://%[1]s/_admin/login | %[2]s publish login --user u1 --tokens-file - --wait
  end the user's sessions:   curl -s -X POST -d user=u1 http://%[1]s/_admin/end
  see what it was asked:     curl -s http://%[1]s/_admin/stats

`, l.Addr(), a.name)
	parts := []part{func(ctx context.Context) error { return serveHTTP(ctx, l, server, slog.New(slog.DiscardHandler)) }}
	if s.Users > 0 {
		parts = append(parts, func(ctx context.Context) error { return s.app(ctx, a, c, server) })
	}
	return runLayers(ctx, parts)
}

// app signs users in as an app would, and again those who must.
func (s standInCommand) app(ctx context.Context, a *app, c *cli, server *idptest.Server) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	pub, err := publishers.New(nc, publishers.WithPrefix(conf.NATSPrefix), publishers.WithSource("/demo-app"))
	if err != nil {
		return err
	}
	signIn := func(ctx context.Context, user string) error {
		t := server.Login(user)
		_, err := pub.Login(ctx, conf.defaultProvider(), user, publishers.Tokens{
			AccessToken: t.Access, RefreshToken: t.Refresh, ExpiresIn: time.Duration(t.ExpiresIn) * time.Second,
		})
		return err
	}
	for n := range s.Users {
		if err := signIn(ctx, devUser(n)); err != nil {
			return err
		}
	}
	only := consumers.Subscription{Prefix: conf.NATSPrefix, Types: []schema.Type{schema.UserReauthRequired}, Provider: conf.defaultProvider()}
	return consumers.Subscribe(ctx, nc, only, func(ctx context.Context, e schema.Event) error { return signIn(ctx, e.User) })
}
