package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// clientFlags are the flags of commands that talk to a running renewd through NATS.
type clientFlags struct {
	Server string `short:"s" placeholder:"URL" help:"NATS server. Default: the settings', else nats://127.0.0.1:4222."`
}

type subscribeCommand struct {
	clientFlags
	eventFlags
	Durable      string `placeholder:"NAME" help:"Keep the place under this name on the server: events that come while this does not run are shown later."`
	UpdateFilter bool   `help:"Let a --durable that was made for other events be for these from now on."`
	Since        string `placeholder:"WHEN" help:"Begin in the past: 1h (ago), 2026-01-31, or an RFC 3339 time."`
	Output       string `short:"o" enum:"text,json" default:"text" help:"text or json (CloudEvents, one a line)."`
}

// Run shows outcomes until it is stopped.
func (s subscribeCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	wanted, err := s.subscription(conf, s.Since)
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	a.doubt(ctx, conf, nc, s.Provider)
	colour := colours(a.stdout, a.environ)
	wanted.APIPrefix = conf.NATSAPI
	wanted.Durable, wanted.UpdateFilter = s.Durable, s.UpdateFilter
	wanted.Logger = daemon.NewLogger(a.stderr, conf)
	return consumers.Subscribe(ctx, nc, wanted, func(_ context.Context, e schema.Event) error {
		if s.Output == "json" {
			return printJSON(a.stdout, e)
		}
		return printLine(a.stdout, colour, e)
	})
}

// doubt warns of an unknown provider, which never has an event. The settings name the providers.
// Where the settings name no provider, renewd's own records of providers count.
func (a *app) doubt(ctx context.Context, conf *settings.Settings, nc *nats.Conn, provider string) {
	var known []string
	for _, p := range conf.Providers {
		known = append(known, p.ID)
	}
	if len(known) == 0 {
		known = recordedProviders(ctx, conf, nc)
	}
	if provider != "" && len(known) > 0 && !slices.Contains(known, provider) {
		fmt.Fprintf(a.stderr, "%s: no provider %s is known here, only %s%s\n",
			a.name, provider, strings.Join(known, ", "), settings.DidYouMean(provider, known))
	}
}

// recordedProviders are the providers in the records of a running renewd; nil if unreadable.
func recordedProviders(
	ctx context.Context, conf *settings.Settings, nc *nats.Conn,
) (known []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil
	}
	bucket, err := js.KeyValue(ctx, conf.Subjects().Name(topology.BucketProviders))
	if err != nil {
		return nil
	}
	keys, err := bucket.ListKeys(ctx)
	if err != nil {
		return nil
	}
	for key := range keys.Keys() {
		if schema.CheckProvider(key) == nil {
			known = append(known, key)
		}
	}
	slices.Sort(known)
	return known
}

// subscription is what the flags choose, from the time since on.
func (f eventFlags) subscription(
	conf *settings.Settings, since string,
) (s consumers.Subscription, err error) {
	s = consumers.Subscription{Prefix: conf.NATSPrefix, Provider: f.Provider, User: f.User}
	if s.Types, err = f.types(); err != nil {
		return s, err
	}
	if err := f.check(); err != nil {
		return s, err
	}
	if s.Since, err = parseTime(since, time.Now()); err != nil {
		return s, settings.Mistake(fmt.Errorf("--since %w", err))
	}
	return s, nil
}

// parseTime reads how long ago, a day, or a point in time; empty is the zero time.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := settings.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.DateOnly, "2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(form, text, time.Local); err == nil {
			return t, nil
		}
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q: want how long ago (90m, 24h, 7d), a day (2026-01-31), "+
		"a time of this place (2026-01-31 16:00), or an RFC 3339 time", text)
}
