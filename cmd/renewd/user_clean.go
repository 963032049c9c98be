package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
)

type userClean struct {
	clientFlags
	byFlags
	Ended    time.Duration `type:"duration" default:"90d" placeholder:"DURATION" help:"Only users whose session ended this long ago, or earlier; 0s: whenever. Default: 90d."`
	Reason   []string      `placeholder:"REASON" help:"Only users whose session ended for this reason: revoked, expired, signed_out and others, as user list shows them; may be repeated."`
	Provider string        `placeholder:"ID" help:"Only users of this provider."`
	Limit    int           `placeholder:"N" help:"This many at most. Default: all."`
	Yes      bool          `help:"Erase them. Without this flag they are only shown."`
	Output   string        `short:"o" enum:"text,json" default:"text" help:"text or json, one user a line."`
}

// Run shows the users whose session has ended, or erases them. It never touches a user who has
// signed in again.
func (u userClean) Run(ctx context.Context, a *app, c *cli) error {
	by, err := u.who(a)
	if err != nil {
		return err
	}
	if u.Limit < 0 {
		return settings.Mistake(fmt.Errorf("--limit %d: want 1 or more", u.Limit))
	}
	if err := (eventFlags{Provider: u.Provider}).check(); err != nil {
		return err
	}
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	p, err := a.openResources(ctx, conf, u.Server)
	if err != nil {
		return err
	}
	defer p.Close()
	found, err := u.find(ctx, a, p)
	if err != nil || !u.Yes {
		return err
	}
	if len(found) > 0 {
		if err := p.Engine.MayErase(ctx); err != nil {
			return eraseHint(fmt.Errorf("nothing is erased: %w", err), a)
		}
	}
	return eraseHint((&cleaning{app: a, by: by}).erase(ctx, p, found), a)
}

// find shows whom the flags choose.
func (u userClean) find(
	ctx context.Context, a *app, p *daemon.Resources,
) (found []admin.Ended, err error) {
	choice := admin.Cleanup{Provider: u.Provider, Reasons: u.Reason, Limit: u.Limit}
	if u.Ended > 0 {
		choice.Before = p.Engine.Now().Add(-u.Ended)
	}
	reasons := map[string]int{}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	err = choice.Find(ctx, p, func(e admin.Ended) error {
		found = append(found, e)
		reasons[e.Reason]++
		if u.Output == "json" {
			return json.NewEncoder(a.stdout).Encode(e)
		}
		if len(found)%aligned == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintf(w, "%s\t%s\tended %s\n",
			plain.Text(grant.Key{Provider: e.Provider, User: e.User}.String()),
			plain.Text(e.Reason), plain.Clock(e.EndedAt))
		return err
	})
	if err = errors.Join(err, w.Flush()); err != nil {
		return nil, err
	}
	var counts []string
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		counts = append(counts, fmt.Sprintf("%d %s", reasons[reason], plain.Text(reason)))
	}
	summary := fmt.Sprintf("%d users", len(found))
	if len(counts) > 0 {
		summary += ": " + strings.Join(counts, ", ")
	}
	if !u.Yes && len(found) > 0 {
		summary += "; nothing is erased without --yes"
	}
	_, err = fmt.Fprintln(a.stderr, summary)
	return found, err
}

// cleaning is an erasure of many users.
type cleaning struct {
	*app
	by string

	mu           sync.Mutex
	erased, kept int
	failed       []string
}

// atOnce is how many users are erased at a time. Each waits for more than ten seconds.
const atOnce = 64

func (c *cleaning) erase(ctx context.Context, p *daemon.Resources, found []admin.Ended) error {
	tell, end := c.counting(fmt.Sprintf("%%d of %d ", len(found)))
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, e := range found {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			erased, err := admin.EraseEnded(ctx, p, e, c.by)
			c.mu.Lock()
			defer c.mu.Unlock()
			switch {
			case ctx.Err() != nil:
				return err
			case err != nil:
				c.failed = append(c.failed, err.Error())
			case erased:
				c.erased++
			default:
				c.kept++
			}
			tell(c.erased + c.kept + len(c.failed))
			return nil
		})
	}
	err := group.Wait()
	end()
	for _, text := range c.failed {
		fmt.Fprintln(c.stderr, "renewd: "+plain.Text(text))
	}
	fmt.Fprintf(c.stderr, "erased %d; %d kept, whose record has changed meanwhile\n", c.erased,
		c.kept)
	if err == nil && len(c.failed) > 0 {
		err = fmt.Errorf("%d could not be erased, or only in part: run this again", len(c.failed))
	}
	return err
}
