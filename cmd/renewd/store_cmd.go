package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

type storeCommand struct {
	Check  storeCheck  `cmd:"" help:"Compare the store with what was published, as after a restore. Exit code 1 if it holds superseded tokens."`
	Accept storeAccept `cmd:"" help:"Present superseded tokens all the same. A provider that takes them for stolen ends those sessions."`
}

type storeCheck struct {
	clientFlags
	Users  bool   `help:"Name each user whose token is superseded."`
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run compares. It changes nothing and may run at any time, best before renewd is started again.
func (s storeCheck) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	p, err := a.openResources(ctx, conf, s.Server)
	if err != nil {
		return err
	}
	defer p.Close()
	var mu sync.Mutex
	show := func(_ context.Context, g grant.Grant, _ grant.Mark) error {
		if s.Users && s.Output == "text" {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(a.stdout, plain.Text(g.Key.String()))
		}
		return nil
	}
	got, err := reconcile.Compare(ctx, p.Store, p.Engine, show)
	if err != nil {
		return streamHint(err, a)
	}
	if s.Output == "json" {
		err = json.NewEncoder(a.stdout).Encode(got)
	} else {
		err = printComparison(a.stdout, got)
	}
	switch {
	case err != nil:
		return err
	case got.Superseded > 0:
		return fmt.Errorf("superseded refresh tokens: %d: they are not presented, "+
			"and their users wait for the next login; "+
			"to present them all the same: %s store accept", got.Superseded, a.name)
	case got.Unreadable > 0:
		return fmt.Errorf("unreadable grants: %d: is this the keyring they were written "+
			"with (RENEWD_KEYS_FILE)?", got.Unreadable)
	}
	return nil
}

func printComparison(to io.Writer, c reconcile.Comparison) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "grants\t%d\t%d of them live\n", c.Grants, c.Live)
	fmt.Fprintf(w, "outcomes\t%d\t", c.Outcomes)
	if c.Outcomes == 0 {
		fmt.Fprint(w, "nothing to compare the store with")
	}
	fmt.Fprintf(w, "\nsuperseded\t%d\ttheir refresh token was replaced since; %d wait already\n",
		c.Superseded, c.Waiting)
	fmt.Fprintf(w,
		"behind\t%d\tolder than what was published, with the same refresh token: they go on\n",
		c.Behind)
	fmt.Fprintf(w, "unreadable\t%d\tno key of the keyring opens them\n", c.Unreadable)
	return w.Flush()
}

type storeAccept struct {
	clientFlags
	User     string `placeholder:"ID" help:"Only this user. Default: all whose token is superseded."`
	Provider string `placeholder:"ID" help:"Only users of this provider. Default: all."`
	Yes      bool   `help:"Do it. Without this flag nothing is changed."`
	operatorFlags
}

// Run makes superseded grants live again, and wakes them.
func (s storeAccept) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if !s.Yes {
		return settings.Mistake(errors.New("this presents refresh tokens that were replaced " +
			"since, which makes some providers end the users' sessions: see who they are with `" +
			a.name + " store check --users`, then add --yes"))
	}
	p, err := a.openResources(ctx, conf, s.Server)
	if err != nil {
		return err
	}
	defer p.Close()
	var about []string // no user: their own outcomes name the cause store.accept
	if s.Provider != "" {
		about = append(about, s.Provider)
	}
	if err := s.record(ctx, a, conf, s.Server, schema.ActStoreAccept, about...); err != nil {
		return fmt.Errorf("accept tokens: %w", err)
	}
	accepted, err := admin.Accept(ctx, p, s.Provider, s.User)
	if err != nil {
		return streamHint(err, a)
	}
	_, err = fmt.Fprintf(a.stdout, "accepted %d\n", accepted)
	return err
}
