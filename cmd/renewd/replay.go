package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

type replayCommand struct {
	clientFlags
	eventFlags
	Since  string `default:"24h" placeholder:"WHEN" help:"From when on: 24h (ago), 7d, 2026-01-31, or an RFC 3339 time. Default: 24h."`
	Until  string `placeholder:"WHEN" help:"Up to when, in the same forms. Default: now."`
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json (CloudEvents, one a line)."`
}

// Run shows what happened.
func (r replayCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	query, err := r.query(conf, time.Now())
	if err != nil {
		return err
	}
	nc, err := a.connect(conf, r.Server)
	if err != nil {
		return err
	}
	defer nc.Close()
	a.doubt(ctx, conf, nc, r.Provider)
	return r.show(ctx, a, nc, query)
}

func (r replayCommand) query(conf *settings.Settings, now time.Time) (consumers.Query, error) {
	q := consumers.Query{Prefix: conf.NATSPrefix, Provider: r.Provider, User: r.User}
	var err error
	if q.Types, err = r.types(); err != nil {
		return q, err
	}
	if err := r.check(); err != nil {
		return q, err
	}
	if q.Since, err = parseTime(r.Since, now); err != nil {
		return q, settings.Mistake(fmt.Errorf("--since %w", err))
	}
	if q.Until, err = parseTime(r.Until, now); err != nil {
		return q, settings.Mistake(fmt.Errorf("--until %w", err))
	}
	if !q.Until.IsZero() && q.Until.Before(q.Since) {
		return q, settings.Mistake(errors.New("--until is before --since"))
	}
	if q.User != "" {
		q.Provider = cmp.Or(q.Provider, conf.DefaultProvider())
	}
	return q, nil
}

// show prints the events; an unreadable event is named and passed over.
func (r replayCommand) show(ctx context.Context, a *app, nc *nats.Conn, q consumers.Query) error {
	colour := colours(a.stdout, a.environ)
	count := 0
	for e, err := range consumers.Replay(ctx, nc, q) {
		if bad, ok := errors.AsType[*schema.Malformed](err); ok {
			fmt.Fprintf(a.stderr, "passed over a message that is no event: %v\n", bad)
			continue
		}
		if err != nil {
			return streamHint(err, a)
		}
		count++
		if err := r.print(a, colour, e); err != nil {
			return err
		}
	}
	if r.Output == "table" {
		fmt.Fprintf(a.stderr, "%s\n", plain.Plural(count, "event"))
	}
	return nil
}

func (r replayCommand) print(a *app, colour palette, e schema.Event) error {
	if r.Output == "json" {
		return printJSON(a.stdout, e)
	}
	who := e.Provider
	if e.User != "" {
		who += "/" + e.User
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %s  %-24s  %s\n",
		plain.Clock(e.Time), colour.ofType(e.Type, fmt.Sprintf("%-20s", e.Type)),
		plain.Text(who), plain.Text(describe(e, e.Time)))
	return err
}
