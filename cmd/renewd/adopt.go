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

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/sql"
	"github.com/renewd/renewd/schema"
)

// adoptCommand takes an app's users over from its own table.
type adoptCommand struct {
	Plan    adoptPlan    `cmd:"" help:"Look at an app's table, and print the settings of a source for it; with NAME, what its table lacks."`
	Observe adoptObserve `cmd:"" help:"Read the whole table and say what is in it. Presents and publishes nothing; remembers what it saw, for check."`
	Import  adoptImport  `cmd:"" help:"Publish each session of the table as a login. Goes on where it stopped."`
	Check   adoptCheck   `cmd:"" help:"Say whether anybody else still renews: whether refresh tokens changed without a sign-in. Exit code 1 if so."`
}

// sourceFlags name a source of kind sql.
type sourceFlags struct {
	clientFlags
	Name string `arg:"" help:"The source's name in the settings."`
}

// adoption is an open source of kind sql.
type adoption struct {
	*admin.Adoption
	conf   *settings.Settings
	config sql.Config
	close  func()
}

func (f sourceFlags) open(ctx context.Context, a *app, c *cli) (*adoption, error) {
	conf, err := sourceOf(a, c, f.Name)
	if err != nil {
		return nil, err
	}
	nc, err := a.connect(conf, f.Server)
	if err != nil {
		return nil, err
	}
	s, err := admin.OpenSource(ctx, nc, conf, f.Name)
	if err != nil {
		nc.Close()
		return nil, bucketHint(err, a, "source")
	}
	return &adoption{s, conf, conf.AppTable(f.Name), func() {
		s.Table.Close()
		nc.Close()
	}}, nil
}

// sourceOf is the settings, which have a source of this name.
func sourceOf(a *app, c *cli, name string) (*settings.Settings, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(conf.AppTables(), name) {
		return nil, settings.Mistake(fmt.Errorf("%q is no source of kind sql in the settings: "+
			"there is %v; %s adopt plan --database-url-file FILE prints one", name,
			conf.AppTables(), a.name))
	}
	return conf, nil
}

type adoptObserve struct {
	sourceFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run reads the whole table.
func (o adoptObserve) Run(ctx context.Context, a *app, c *cli) error {
	s, err := o.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer s.close()
	bar := newBar(a.stderr)
	tally, err := s.Look(ctx, true, bar.show)
	bar.end()
	if err != nil {
		return tableHint(err, a, o.Name)
	}
	if o.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(tally)
	}
	return printTally(a.stdout, s.conf.Sources[o.Name].Table, tally)
}

type adoptImport struct {
	sourceFlags
	operatorFlags
	DryRun bool    `help:"Only say what would be taken."`
	Again  bool    `help:"Begin with the first row also where an earlier import stopped in the middle."`
	Pace   float64 `default:"500" placeholder:"N" help:"Logins a second, at most. How fast they are renewed is the provider's rate in the settings. Default: 500."`
	Output string  `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run publishes the sessions of the table.
func (i adoptImport) Run(ctx context.Context, a *app, c *cli) error {
	if i.Pace <= 0 {
		return settings.Mistake(errors.New("--pace: want more than 0"))
	}
	s, err := i.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer s.close()
	bar := newBar(a.stderr)
	var p sql.Progress
	if i.DryRun {
		p.Tally, err = s.Look(ctx, false, bar.show)
	} else {
		if s.conf.Sources[i.Name].Mode != settings.ModeLive {
			return settings.Mistake(fmt.Errorf("sources.%s.mode is observe: what is imported is "+
				"renewed from then on. Switch the app's own job off, set mode to live, and start "+
				"renewd again; --dry-run says what would be taken", i.Name))
		}
		if err := i.record(ctx, a, s.conf, i.Server, schema.ActSourcesImport, i.Name); err != nil {
			return err
		}
		p, err = s.Import(ctx, i.Again, paced(i.Pace), bar.show)
	}
	bar.end()
	if err != nil {
		return fmt.Errorf("%w; the import goes on where it stopped when it is run again",
			tableHint(err, a, i.Name))
	}
	if i.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(p)
	}
	return printTally(a.stdout, s.conf.Sources[i.Name].Table, p.Tally)
}

// paced lets so many calls through a second.
func paced(pace float64) func(context.Context) error {
	next := time.Now()
	return func(ctx context.Context) error {
		if wait := time.Until(next); wait > 0 {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(wait):
			}
		}
		if now := time.Now(); next.Before(now.Add(-time.Second)) {
			next = now // unused calls are lost
		}
		next = next.Add(time.Duration(float64(time.Second) / pace))
		return ctx.Err()
	}
}

type adoptCheck struct {
	sourceFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run looks whether another program still renews.
func (k adoptCheck) Run(ctx context.Context, a *app, c *cli) error {
	s, err := k.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer s.close()
	bar := newBar(a.stderr)
	v, err := s.Check(ctx, s.config, bar.show)
	bar.end()
	if err != nil {
		return tableHint(err, a, k.Name)
	}
	if k.Output == "json" {
		err = json.NewEncoder(a.stdout).Encode(v)
	} else if err = printTally(a.stdout, s.config.Table, v.Now); err == nil {
		verdict := "nobody else renews, as far as the table shows"
		if !v.Clean {
			verdict = "somebody else may still renew"
		}
		_, err = fmt.Fprintf(a.stdout, "\n%s: %s\n", verdict, v.Why)
	}
	if err == nil && !v.Clean {
		return errSilent
	}
	return err
}

// tableHint adds the next step to an error about an app's table.
func tableHint(err error, a *app, name string) error {
	return fmt.Errorf("source %s: %w (see %s adopt plan %s)", name, err, a.name, name)
}

// printTally is a tally for people.
func printTally(to io.Writer, table string, t sql.Tally) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "rows of %s\t%d\n", plain.Text(table), t.Rows)
	for _, line := range []struct {
		what  string
		n     int
		about string
	}{
		{"without tokens", t.Empty, ""},
		{"emptied since they were last seen", t.Cleared, ""},
		{"access token lives", t.Live, ""},
		{"access token has ended", t.Expired, "renewed by the refresh token, if that still works"},
		{"no word of when it ends", t.Unknown, ""},
		{"without a refresh token", t.NoRefresh, "must sign in when the access token ends"},
		{"never seen before", t.New, ""},
		{"as last seen", t.Known, ""},
		{"changed since", t.Changed, ""},
		{"changed without a sign-in", t.Foreign, ""},
		{"taken as logins", t.Taken, ""},
	} {
		if line.n > 0 {
			fmt.Fprintf(w, "  %s\t%d\t%s\n", line.what, line.n, line.about)
		}
	}
	fmt.Fprintf(w, "cannot be taken\t%d\n", t.Unreadable())
	for _, p := range sql.Problems() {
		if n := t.Problems[p]; n > 0 {
			fmt.Fprintf(w, "  %s\t%d\t%s; row %s\n", p, n, p.Says(),
				plain.Text(strings.Join(t.Examples[p], ", ")))
		}
	}
	return w.Flush()
}

// bar shows how far a walk over a table has come, on a terminal.
type bar struct {
	to    io.Writer // nil: nowhere
	shown time.Time
}

func newBar(to io.Writer) *bar {
	if !isTerminal(to) {
		return &bar{}
	}
	return &bar{to: to}
}

func (b *bar) show(so sql.Tally, of int) {
	if b.to == nil || time.Since(b.shown) < 100*time.Millisecond && so.Rows < of {
		return
	}
	b.shown = time.Now()
	const cells = 30
	done := cells * so.Rows / max(of, 1)
	fmt.Fprintf(b.to, "\r[%s%s] %d of %d rows, %d taken, %d cannot be ",
		strings.Repeat("#", done), strings.Repeat(".", cells-done), so.Rows, of, so.Taken,
		so.Unreadable())
}

func (b *bar) end() {
	if b.to != nil && !b.shown.IsZero() {
		fmt.Fprintln(b.to)
	}
}

type adoptPlan struct {
	Name            string `arg:"" optional:"" help:"A source in the settings: prints what its table lacks. Without it the flags say where to look."`
	DatabaseURLFile string `name:"database-url-file" placeholder:"FILE" help:"File with the address of the app's database: postgres://… or mysql://…"`
	Table           string `default:"users" help:"The app's table. Default: users."`
	As              string `default:"app" placeholder:"NAME" help:"Name of the source. Default: app."`
	Provider        string `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there."`
}

// Run prints settings, or statements. It changes nothing.
func (p adoptPlan) Run(ctx context.Context, a *app, c *cli) error {
	if p.Name != "" {
		return p.statements(ctx, a, c)
	}
	if p.DatabaseURLFile == "" {
		return settings.Mistake(errors.New("--database-url-file: missing: where is the app's " +
			"database? Or name a source of the settings"))
	}
	address, err := settings.ReadSecret(p.DatabaseURLFile)
	if err != nil {
		return settings.Mistake(fmt.Errorf("--database-url-file: %w", err))
	}
	if err := senders.CheckName(p.As); err != nil {
		return settings.Mistake(fmt.Errorf("--as %q: %w", p.As, err))
	}
	found, err := sql.Propose(ctx, secret.New(address), p.Table)
	if err != nil {
		return fmt.Errorf("look at table %s: %w", plain.Text(p.Table), err)
	}
	provider := p.Provider
	if conf, err := a.load(c); err == nil {
		provider = cmp.Or(provider, conf.DefaultProvider())
	}
	p.print(a.stdout, found, cmp.Or(provider, "propelauth"))
	if missing := found.Missing(); len(missing) > 0 {
		return fmt.Errorf("found no column for %s: fill it in; the table has %s",
			strings.Join(missing, ", "), plain.Text(strings.Join(found.Have, ", ")))
	}
	return nil
}

// print writes a source for the settings file.
func (p adoptPlan) print(to io.Writer, found sql.Proposal, provider string) {
	fmt.Fprintf(to, "sources:\n  %s:\n    kind: sql\n    mode: observe                # "+
		"live once the app's own job is off\n    provider: %s\n    database_url_file: %s\n"+
		"    table: %s\n", p.As, provider, yamlText(p.DatabaseURLFile), yamlText(p.Table))
	for _, key := range []string{"id", "user", "access_token", "refresh_token", "expires_at",
		"updated_at", "signed_in_at"} {
		column := found.Columns[key]
		switch {
		case column != "":
			fmt.Fprintf(to, "    %s: %s\n", key, yamlText(column))
		case slices.Contains(found.Missing(), key):
			fmt.Fprintf(to, "    %s: \"\"    # no column found: fill it in\n", key)
		default:
			fmt.Fprintf(to, "    # %s: no column found\n", key)
		}
	}
	if found.Encrypted {
		fmt.Fprintln(to, "    encrypted: true              # as Laravel's encrypted cast writes\n"+
			"    app_key_file: /run/secrets/app-key   # the app's APP_KEY")
	}
}

// yamlText is a text as a YAML file has it.
func yamlText(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"+
			"0123456789_./-", r)
	}) {
		return text
	}
	return fmt.Sprintf("%q", text)
}

// statements prints the statements that the table of a source lacks.
func (p adoptPlan) statements(ctx context.Context, a *app, c *cli) error {
	conf, err := sourceOf(a, c, p.Name)
	if err != nil {
		return err
	}
	t, err := sql.Open(conf.AppTable(p.Name))
	if err != nil {
		return err
	}
	defer t.Close()
	plan, err := t.Plan(ctx)
	if err != nil {
		return fmt.Errorf("source %s: %w", p.Name, err)
	}
	if len(plan) == 0 {
		fmt.Fprintln(a.stderr, "the table has all that the source needs")
	}
	for _, statement := range plan {
		fmt.Fprintln(a.stdout, plain.Text(statement))
	}
	return nil
}
