package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
)

type userList struct {
	clientFlags
	Status   string `placeholder:"STATUS" help:"Only users of this status: live, dormant, reauth_required, signed_out, suspended, unproven or unreadable."`
	Provider string `placeholder:"ID" help:"Only users of this provider."`
	Limit    int    `placeholder:"N" help:"This many at most; then it says how to go on. Default: all."`
	After    string `placeholder:"PLACE" help:"Go on where a list with --limit ended."`
	Output   string `short:"o" enum:"text,json" default:"text" help:"text or json, one user a line; at a limit a last line with next, for --after."`
}

// Run lists users. It reads all records, whatever the filter takes.
func (u userList) Run(ctx context.Context, a *app, c *cli) error {
	if err := u.check(); err != nil {
		return err
	}
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	p, err := a.openResources(ctx, conf, u.Server)
	if errors.Is(err, fs.ErrNotExist) { // the list needs no key
		p, err = a.openResourcesWith(ctx, conf, u.Server, nil)
	}
	if err != nil {
		return err
	}
	defer p.Close()
	next, err := u.print(ctx, a, p)
	switch {
	case errors.Is(err, admin.ErrPlace):
		return settings.Mistake(fmt.Errorf("--after: %w", err))
	case err != nil || next == "":
		return err
	case u.Output == "json":
		return json.NewEncoder(a.stdout).Encode(map[string]string{"next": next})
	}
	_, err = fmt.Fprintf(a.stderr, "there are more: --after %s\n", next)
	return err
}

func (u userList) check() error {
	var known []string
	for _, s := range admin.Statuses() {
		known = append(known, string(s))
	}
	if u.Status != "" && !slices.Contains(known, u.Status) {
		return settings.Mistake(fmt.Errorf("--status %s: no such status%s: want one of %s",
			u.Status, settings.DidYouMean(u.Status, known), strings.Join(known, ", ")))
	}
	if u.Limit < 0 {
		return settings.Mistake(fmt.Errorf("--limit %d: want 1 or more", u.Limit))
	}
	return (eventFlags{Provider: u.Provider}).check()
}

func (u userList) print(ctx context.Context, a *app, p *daemon.Resources) (next string, _ error) {
	filter := admin.UserFilter{
		Status: grant.Status(u.Status), Provider: u.Provider, Limit: u.Limit, After: u.After,
	}
	if u.Output == "json" {
		out := json.NewEncoder(a.stdout)
		return admin.ListUsers(ctx, p, filter, func(l admin.ListedUser) error {
			return out.Encode(l)
		})
	}
	w, lines := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0), 0
	next, err := admin.ListUsers(ctx, p, filter, func(l admin.ListedUser) error {
		if lines++; lines%aligned == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		user := plain.Text(grant.Key{Provider: l.Provider, User: l.User}.String())
		_, err := fmt.Fprintf(w, "%s\t%s%s\tsigned in %s\tnext %s\n", user, l.Status,
			plain.InBrackets(l.Reason), plain.Clock(l.LoginAt), plain.Clock(l.NextDueAt))
		return err
	})
	return next, errors.Join(err, w.Flush())
}

// aligned is how many lines are kept back to make columns.
const aligned = 200
