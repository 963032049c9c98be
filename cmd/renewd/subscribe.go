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
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// clientFlags are those of commands that talk to a running renewd through NATS.
type clientFlags struct {
	Server string `short:"s" placeholder:"URL" help:"NATS server. Default: the settings', else nats://127.0.0.1:4222."`
}

type subscribeCommand struct {
	clientFlags
	eventFlags
	Durable      string `placeholder:"NAME" help:"Keep the place under this name on the server: events that come while nobody runs this are shown later."`
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
	wanted.APIPrefix, wanted.Durable, wanted.UpdateFilter, wanted.Logger = conf.NATSAPI, s.Durable, s.UpdateFilter, newLogger(a.stderr, &conf.settings)
	return consumers.Subscribe(ctx, nc, wanted, func(_ context.Context, e schema.Event) error {
		if s.Output == "json" {
			return printJSON(a.stdout, e)
		}
		return printLine(a.stdout, colour, e)
	})
}

// doubt warns of a provider that is not known: there will never be an event of it. The settings name
// the providers, or, where they name none, the records that renewd keeps of them.
func (a *app) doubt(ctx context.Context, conf *configuration, nc *nats.Conn, provider string) {
	var known []string
	for _, p := range conf.Providers {
		known = append(known, p.ID)
	}
	if len(known) == 0 {
		known = recordedProviders(ctx, conf, nc)
	}
	if provider != "" && len(known) > 0 && !slices.Contains(known, provider) {
		fmt.Fprintf(a.stderr, "%s: no provider %s is known here, only %s%s\n", a.name, provider, strings.Join(known, ", "), didYouMean(provider, known))
	}
}

// recordedProviders are those that a running renewd keeps records of; none if they cannot be read.
func recordedProviders(ctx context.Context, conf *configuration, nc *nats.Conn) (known []string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil
	}
	bucket, err := js.KeyValue(ctx, conf.subjects().Name(stream.BucketProviders))
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

// subscription is what the flags choose, from the time that since says.
func (f eventFlags) subscription(conf *configuration, since string) (s consumers.Subscription, err error) {
	s = consumers.Subscription{Prefix: conf.NATSPrefix, Provider: f.Provider, User: f.User}
	if s.Types, err = f.types(); err != nil {
		return s, err
	}
	if err := f.check(); err != nil {
		return s, err
	}
	if s.Since, err = parseTime(since, time.Now()); err != nil {
		return s, usageError{fmt.Errorf("--since %w", err)}
	}
	return s, nil
}

// parseTime reads how long ago, a day, or a point in time; empty is the zero time.
func parseTime(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := parseDuration(text); err == nil && d >= 0 {
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
	return time.Time{}, fmt.Errorf("%q: want how long ago (90m, 24h, 7d), a day (2026-01-31), a time of this place (2026-01-31 16:00), or an RFC 3339 time", text)
}
