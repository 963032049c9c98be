package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/plain"
)

type doctorCommand struct {
	clientFlags
	Grants int    `default:"1000" help:"How many grants' timers are looked at; 0: all of them."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run looks at everything, also where some parts are down, and changes nothing.
func (d doctorCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	look := admin.Look{
		Conf: conf, Server: d.Server, Grants: d.Grants, Program: a.name,
		Connect: func(server string) (*nats.Conn, error) { return a.connect(conf, server) },
	}
	if d.Output == "text" {
		look.Tell = a.printFinding
	}
	found := admin.Examine(ctx, look)
	if d.Output == "json" {
		if err := json.NewEncoder(a.stdout).Encode(found); err != nil {
			return err
		}
	}
	return anyBroken(found)
}

// anyBroken fails if a finding is broken.
func anyBroken(found []admin.Finding) error {
	if slices.ContainsFunc(found, func(f admin.Finding) bool { return f.State == admin.Broken }) {
		return errSilent
	}
	return nil
}

// printFinding shows a finding as it comes.
func (a *app) printFinding(f admin.Finding) {
	w := tabwriter.NewWriter(a.stdout, 24, 8, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\n", fmt.Sprintf("%-8s%s", f.State, f.Check), plain.Text(f.Found))
	if f.Advice != "" {
		fmt.Fprintf(w, "\t→ %s\n", plain.Text(f.Advice))
	}
	_ = w.Flush() // to a terminal: a failure can be told nowhere else
}
