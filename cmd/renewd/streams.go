package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

type streamsCommand struct {
	Plan  streamsPlan  `cmd:"" help:"Show what apply would do. Exit code 1 if that is anything."`
	Apply streamsApply `cmd:"" help:"Create and update the streams and consumers as the settings want them."`
}

type streamsPlan struct {
	clientFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run compares.
func (s streamsPlan) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	plan, _, done, err := a.planStreams(ctx, conf, s.Server)
	if err != nil {
		return err
	}
	defer done()
	if s.Output == "json" {
		if err := json.NewEncoder(a.stdout).Encode(plan); err != nil {
			return err
		}
	} else {
		fmt.Fprint(a.stdout, plan)
	}
	if err := plan.Refusal(); err != nil {
		return err
	}
	if plan.Pending() {
		return fmt.Errorf("changes are wanted: %s streams apply", a.name)
	}
	return nil
}

type streamsApply struct {
	clientFlags
	operatorFlags
	Force bool `help:"Also make the changes that lose messages; plan names them."`
}

// Run applies.
func (s streamsApply) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err == nil {
		_, err = s.who(a)
	}
	if err != nil {
		return err
	}
	plan, js, done, err := a.planStreams(ctx, conf, s.Server)
	if err != nil {
		return err
	}
	defer done()
	plan.Force = s.Force
	fmt.Fprint(a.stdout, plan)
	if err := topology.Apply(ctx, js, plan); err != nil || !plan.Pending() {
		return err
	}
	// Told afterwards: the stream of outcomes may have been missing before.
	err = s.record(ctx, a, conf, s.Server, schema.ActStreamsApply, changed(plan)...)
	if err != nil {
		return fmt.Errorf("the streams are applied, but %w", err)
	}
	return nil
}

func changed(plan topology.Changes) (names []string) {
	for _, i := range plan.Items {
		if i.Action == topology.Create || i.Action == topology.Update {
			names = append(names, i.Name)
		}
	}
	return names
}

func (a *app) planStreams(
	ctx context.Context, conf *settings.Settings, server string,
) (topology.Changes, jetstream.JetStream, func(), error) {
	if !conf.Reachable(server) {
		return topology.Changes{}, nil, nil, settings.Mistake(errors.New(
			"the settings name no NATS server: set RENEWD_NATS_URL or --server. " +
				"An embedded one gets its streams when renewd starts"))
	}
	nc, err := a.connect(conf, server)
	if err != nil {
		return topology.Changes{}, nil, nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return topology.Changes{}, nil, nil, err
	}
	plan, err := topology.Plan(ctx, js, daemon.Topology(conf))
	if err != nil {
		nc.Close()
		return topology.Changes{}, nil, nil, err
	}
	return plan, js, nc.Close, nil
}
