package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/demo"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

type standInCommand struct {
	clientFlags
	Listen     string        `default:"127.0.0.1:7470" placeholder:"HOST:PORT" help:"Where to listen. Default: 127.0.0.1:7470."`
	Lifetime   time.Duration `type:"duration" default:"30s" placeholder:"DURATION" help:"Life of an access token. Default: 30s."`
	Rotation   string        `enum:"strict,grace,never" default:"strict" help:"What a refresh does to the refresh token: strict, grace or never."`
	ClientID   string        `default:"renewd-dev" help:"Client id that it takes. Default: renewd-dev."`
	SecretFile string        `name:"client-secret-file" placeholder:"FILE" help:"File with the client secret that it wants. Default: none, a public client."`
	Users      int           `placeholder:"N" help:"Be an app with N users too: sign them in and publish their logins, again when one must. Default: 0."`
	Provider   string        `placeholder:"ID" help:"Provider's id in renewd's settings, for --users. Default: the first there, else propelauth."`
	Durable    string        `placeholder:"NAME" help:"With --users, the durable to read outcomes from, where renewd has a NATS account of its own. Default: none."`
	EndEvery   time.Duration `type:"duration" default:"30s" placeholder:"DURATION" help:"With --users, how often it ends somebody's session. Default: 30s."`
}

// Run serves the stand-in until ctx ends. Its admin endpoints are on, since it is never a real
// provider.
func (s standInCommand) Run(ctx context.Context, a *app, c *cli) error {
	options := standin.Options{
		Lifetime: s.Lifetime,
		Rotation: standin.Rotation(s.Rotation),
		ClientID: s.ClientID,
		Admin:    true,
	}
	if s.Lifetime < time.Second || s.EndEvery < time.Second || s.Users < 0 {
		return settings.Mistake(errors.New(
			"want --lifetime of 1s or more, --end-every of 1s or more, --users of 0 or more",
		))
	}
	if s.SecretFile != "" {
		var err error
		if options.ClientSecret, err = settings.ReadSecret(s.SecretFile); err != nil {
			return settings.Mistake(fmt.Errorf("--client-secret-file: %w", err))
		}
	}
	l, err := daemon.Listen(ctx, s.Listen)
	if err != nil {
		return err
	}
	server := standin.New(options)
	fmt.Fprintf(a.stdout, `a stand-in for PropelAuth listens on http://%s

  sign a user in, and give the tokens to renewd:
    curl -s -X POST -d user=u1 http://%[1]s/_admin/login |
      %[2]s publish login --user u1 --tokens-file - --wait
  end the user's sessions:   curl -s -X POST -d user=u1 http://%[1]s/_admin/end
  see what it was asked:     curl -s http://%[1]s/_admin/stats

`, l.Addr(), a.name)
	mux := http.NewServeMux()
	mux.Handle("/", server)
	// The path of `renewd healthcheck`, so that one health check serves every container of the
	// image.
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		daemon.Reply(w, http.StatusOK, daemon.Readiness{Status: "ok"})
	})
	parts := []daemon.Service{
		func(ctx context.Context) error {
			return daemon.ServeHTTP(ctx, l, mux, slog.New(slog.DiscardHandler))
		},
	}
	if s.Users > 0 {
		parts = append(parts, func(ctx context.Context) error { return s.app(ctx, a, c, server) })
	}
	return daemon.Supervise(ctx, parts)
}

// app is the app with users.
func (s standInCommand) app(ctx context.Context, a *app, c *cli, server *standin.Server) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	var nc *nats.Conn
	connect := func(context.Context) error {
		nc, err = a.connect(conf, s.Server)
		return err
	}
	logger := daemon.NewLogger(a.stderr, conf)
	err = daemon.Patiently(ctx, logger, conf.StartTimeout, "NATS", "RENEWD_NATS_URL", connect)
	if err != nil && ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	defer nc.Close()
	if s.Provider == "" {
		s.Provider = conf.DefaultProvider()
	}
	colour := colours(a.stdout, a.environ)
	d := demo.App{
		StandIn: server, Provider: s.Provider, Prefix: conf.NATSPrefix, API: conf.NATSAPI,
		Durable: s.Durable,
		Users:   s.Users, EndEvery: s.EndEvery, EditEvery: s.EndEvery / 2,
		Say: func(text string) { fmt.Fprintln(a.stdout, text) },
		Seen: func(e schema.Event) error {
			if e.Type == schema.UserSynced {
				return nil
			}
			return printLine(a.stdout, colour, e)
		},
	}
	return d.Run(ctx, nc)
}
