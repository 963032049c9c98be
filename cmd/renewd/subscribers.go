package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// subscribersCommand is for the operator. A service with its own NATS account may read from a
// durable, but not make a durable.
type subscribersCommand struct {
	Add    subscribersAdd    `cmd:"" help:"Make the durable that a service reads outcomes from."`
	List   subscribersList   `cmd:"" help:"Say of each durable what it is for and how far it is."`
	Remove subscribersRemove `cmd:"" help:"Remove a durable: its service hears nothing more."`
}

type subscribersAdd struct {
	clientFlags
	eventFlags
	Name         string `arg:"" help:"Name of the durable: the service's own."`
	Since        string `placeholder:"WHEN" help:"Begin in the past: 1h (ago), 2026-01-31, or an RFC 3339 time. Default: now."`
	All          bool   `help:"Begin with the oldest outcome there is."`
	From         uint64 `placeholder:"SEQUENCE" help:"Begin with this one in the stream: one after what a removed durable had handled."`
	Concurrency  int    `default:"1" placeholder:"N" help:"How many outcomes may be under way at a time. Default: 1, in their order."`
	UpdateFilter bool   `help:"Let a durable that is there be for these outcomes from now on."`
	operatorFlags
}

// Run makes a durable.
func (s subscribersAdd) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	wanted, err := s.subscription(conf, s.Since)
	if err == nil {
		err = confine(&wanted, conf.SenderRights(), s.Name)
	}
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, stop := context.WithTimeout(ctx, dialLimit)
	defer stop()
	wanted.Durable, wanted.UpdateFilter = s.Name, s.UpdateFilter
	wanted.StartAll, wanted.StartAt = s.All, s.From
	wanted.Concurrency = s.Concurrency
	wanted.Logger = daemon.NewLogger(a.stderr, conf)
	if err := s.record(ctx, a, conf, s.Server, schema.ActSubscribersAdd, s.Name); err != nil {
		return fmt.Errorf("add subscriber: %w", err)
	}
	if err := consumers.Prepare(ctx, nc, wanted); err != nil {
		return streamHint(err, a)
	}
	of := ""
	if len(wanted.Providers) > 0 {
		of = fmt.Sprintf(" and the providers %s, which senders.%s.read names",
			strings.Join(wanted.Providers, ", "), s.Name)
	}
	fmt.Fprintf(a.stdout, "%s is there: subscribe with the durable %q%s\n", s.Name, s.Name, of)
	return nil
}

// confine keeps a durable inside the rights of its name to read.
func confine(s *consumers.Subscription, rights senders.List, name string) error {
	refuse := func(format string, args ...any) error {
		return settings.Mistake(fmt.Errorf(
			"%s may not read this: the setting senders.%s.read "+format,
			append([]any{name, name}, args...)...))
	}
	may := rights.Readable(name)
	switch {
	case rights.MayReadAll(name):
		return nil
	case len(may) == 0:
		return refuse("names no provider, and senders says of others what they may read")
	case s.Provider != "" && !rights.MayRead(name, s.Provider):
		return refuse("names %s, and not %s", strings.Join(may, ", "), s.Provider)
	case s.Provider == "":
		s.Providers = may
	}
	return nil
}

type subscribersList struct {
	clientFlags
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json (one a line)."`
}

// Run lists the durables.
func (s subscribersList) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	outcomes, done, err := a.openOutcomes(ctx, conf, s.clientFlags)
	if err != nil {
		return err
	}
	defer done()
	var all []admin.Subscriber
	list := outcomes.ListConsumers(ctx)
	for i := range list.Info() {
		if i.Config.Durable != "" {
			one := admin.SubscriberOf(i)
			one.Exceeds = admin.Exceeds(conf, one)
			all = append(all, one)
		}
	}
	if err := list.Err(); err != nil {
		return streamHint(err, a)
	}
	slices.SortFunc(all, func(x, y admin.Subscriber) int { return cmp.Compare(x.Name, y.Name) })
	if s.Output == "json" {
		for _, one := range all {
			if err := json.NewEncoder(a.stdout).Encode(one); err != nil {
				return err
			}
		}
		return nil
	}
	return printSubscribers(a.stdout, all, time.Now())
}

func printSubscribers(w io.Writer, all []admin.Subscriber, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w,
			"no durable is there; one without a name is forgotten with its program, and not listed")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tOUTCOMES\tWAITING\tIN HAND\tHANDLED UP TO\tLAST\tCONNECTED")
	for _, s := range all {
		last, connected, outcomes := "never", "no", "all"
		if s.LastAt != nil {
			last = settings.FormatDuration(now.Sub(*s.LastAt).Truncate(time.Second)) + " ago"
		}
		if s.Connected {
			connected = "yes"
		}
		if len(s.Outcomes) > 0 {
			outcomes = strings.Join(s.Outcomes, " ")
		}
		if s.Exceeds {
			outcomes += " (more than senders." + s.Name + ".read allows)"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n",
			s.Name, outcomes, s.Waiting, s.InHand, s.Handled, last, connected)
	}
	return t.Flush()
}

type subscribersRemove struct {
	clientFlags
	operatorFlags
	Name string `arg:"" help:"Name of the durable."`
}

// Run removes a durable.
func (s subscribersRemove) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	outcomes, done, err := a.openOutcomes(ctx, conf, s.clientFlags)
	if err != nil {
		return err
	}
	defer done()
	durable, err := outcomes.Consumer(ctx, s.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) ||
		errors.Is(err, jetstream.ErrInvalidConsumerName) {
		return fmt.Errorf("%s: no such durable: see %s subscribers list", s.Name, a.name)
	}
	if err == nil {
		err = s.record(ctx, a, conf, s.Server, schema.ActSubscribersRemove, s.Name)
	}
	if err == nil {
		err = outcomes.DeleteConsumer(ctx, s.Name)
	}
	if err != nil {
		return streamHint(err, a)
	}
	// With the number a mistake is mended without a gap.
	fmt.Fprintf(a.stdout,
		"removed; to have it again without a gap: %s subscribers add %s --from %d\n", a.name,
		s.Name, durable.CachedInfo().AckFloor.Stream+1)
	return nil
}

// openOutcomes looks up the stream of outcomes.
func (a *app) openOutcomes(
	ctx context.Context, conf *settings.Settings, f clientFlags,
) (jetstream.Stream, func(), error) {
	nc, err := a.connect(conf, f.Server)
	if err != nil {
		return nil, nil, err
	}
	s, err := outcomesOf(ctx, nc, conf)
	if err != nil {
		nc.Close()
		return nil, nil, streamHint(err, a)
	}
	return s, nc.Close, nil
}

func outcomesOf(
	ctx context.Context, nc *nats.Conn, conf *settings.Settings,
) (jetstream.Stream, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return js.Stream(ctx, conf.Subjects().Name(topology.Outcomes))
}
