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
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// subscribersCommand is for the operator: where services have NATS accounts of their own they may
// read from a durable, and not make one.
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
	Concurrency  int    `default:"1" placeholder:"N" help:"How many outcomes may be in hand at a time. Default: 1, in their order."`
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
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, s.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, stop := context.WithTimeout(ctx, natsDialLimit)
	defer stop()
	wanted.Durable, wanted.UpdateFilter, wanted.StartAll, wanted.StartAt, wanted.Concurrency = s.Name, s.UpdateFilter, s.All, s.From, s.Concurrency
	wanted.Logger = newLogger(a.stderr, &conf.settings)
	if err := s.record(ctx, a, conf, s.Server, schema.ActSubscribersAdd, s.Name); err != nil {
		return fmt.Errorf("add subscriber: %w", err)
	}
	if err := consumers.Prepare(ctx, nc, wanted); err != nil {
		return streamHint(err, a)
	}
	fmt.Fprintf(a.stdout, "%s is there: subscribe with the durable %q\n", s.Name, s.Name)
	return nil
}

// subscriber is a durable as `subscribers list` prints it.
type subscriber struct {
	Name     string   `json:"name"`
	Outcomes []string `json:"outcomes"` // filters; none: everything
	// Handled is the sequence up to which all was handled; Waiting is how many outcomes are not
	// handed out yet, InHand how many are and were not answered, Again how many of those came before.
	Handled uint64 `json:"handled"`
	Waiting uint64 `json:"waiting"`
	InHand  int    `json:"in_hand"`
	Again   int    `json:"redelivered"`
	// Connected: somebody asks for outcomes at this moment.
	Connected bool       `json:"connected"`
	LastAt    *time.Time `json:"last_handled_at,omitempty"`
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
	var all []subscriber
	list := outcomes.ListConsumers(ctx)
	for i := range list.Info() {
		if i.Config.Durable != "" {
			all = append(all, subscriberOf(i))
		}
	}
	if err := list.Err(); err != nil {
		return streamHint(err, a)
	}
	slices.SortFunc(all, func(x, y subscriber) int { return cmp.Compare(x.Name, y.Name) })
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

func subscriberOf(i *jetstream.ConsumerInfo) subscriber {
	s := subscriber{
		Name: i.Name, Outcomes: i.Config.FilterSubjects, Handled: i.AckFloor.Stream, Waiting: i.NumPending, InHand: i.NumAckPending,
		Again: i.NumRedelivered, Connected: i.NumWaiting > 0 || i.PushBound, LastAt: i.AckFloor.Last,
	}
	if i.Config.FilterSubject != "" {
		s.Outcomes = []string{i.Config.FilterSubject}
	}
	return s
}

func printSubscribers(w io.Writer, all []subscriber, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no durable is there; one without a name is forgotten with its program, and not listed")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tOUTCOMES\tWAITING\tIN HAND\tHANDLED UP TO\tLAST\tCONNECTED")
	for _, s := range all {
		last, connected, outcomes := "never", "no", "all"
		if s.LastAt != nil {
			last = formatDuration(now.Sub(*s.LastAt).Truncate(time.Second)) + " ago"
		}
		if s.Connected {
			connected = "yes"
		}
		if len(s.Outcomes) > 0 {
			outcomes = strings.Join(s.Outcomes, " ")
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%s\t%s\n", s.Name, outcomes, s.Waiting, s.InHand, s.Handled, last, connected)
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
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrInvalidConsumerName) {
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
	// The number lets a mistake be mended without a gap.
	fmt.Fprintf(a.stdout, "removed; to have it again without a gap: %s subscribers add %s --from %d\n", a.name, s.Name, durable.CachedInfo().AckFloor.Stream+1)
	return nil
}

// openOutcomes looks up the stream of outcomes.
func (a *app) openOutcomes(
	ctx context.Context, conf *configuration, f clientFlags,
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

func outcomesOf(ctx context.Context, nc *nats.Conn, conf *configuration) (jetstream.Stream, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	return js.Stream(ctx, conf.subjects().Name(stream.Outcomes))
}
