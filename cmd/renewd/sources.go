package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/hook"
)

// sourcesCommand is for the operator of sources, the places outside where commands come from.
type sourcesCommand struct {
	List sourcesList `cmd:"" help:"Say of each source what became of the messages posted to it."`
}

type sourcesList struct {
	clientFlags
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json (one a line)."`
}

// Run lists the sources of posted messages.
func (l sourcesList) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if len(conf.Hooks()) == 0 {
		return settings.Mistake(errors.New("there is no source in the settings that others post " +
			"to: see docs/sources.md"))
	}
	nc, err := a.connect(conf, l.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	lines, err := admin.Sources(ctx, js, conf)
	if err != nil {
		return streamHint(err, a)
	}
	if l.Output != "json" {
		return printSources(a.stdout, lines)
	}
	for _, line := range lines {
		if err := json.NewEncoder(a.stdout).Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func printSources(to io.Writer, lines []admin.SourceLine) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tKIND\tPROVIDER\tLAST MESSAGE\tACCEPTED\tREPLAYED\tIGNORED\t"+
		"UNKNOWN USER\tNOT TAKEN\tERASURES OWED\tLAST REFUSAL")
	for _, l := range lines {
		last := "-"
		if r := l.Figures.Refused; r != nil {
			last = fmt.Sprintf("%s %s: %s", plain.Clock(r.At), r.Result, plain.Text(r.Why))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", l.Name, l.Kind, l.Provider,
			plain.Clock(l.LastAt), l.Counts[hook.Accepted], l.Counts[hook.Replayed],
			l.Counts[hook.Ignored], l.Counts[hook.UnknownUser], l.Refused(), len(l.Owed), last)
	}
	return w.Flush()
}
