package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/schema"
)

// sinksCommand is for the operator of sinks, the places outside where outcomes are taken to.
type sinksCommand struct {
	List     sinksList     `cmd:"" help:"Say of each sink in the settings how it stands and how far behind it is."`
	Show     sinksShow     `cmd:"" help:"Show one sink: what waits there, and its dead letters."`
	Pause    sinksPause    `cmd:"" help:"Stop deliveries. What comes meanwhile waits."`
	Resume   sinksResume   `cmd:"" help:"Deliver again, after a pause or after renewd has disabled the sink."`
	Retry    sinksRetry    `cmd:"" help:"Deliver dead letters again, and try what waits at once."`
	Replay   sinksReplay   `cmd:"" help:"Deliver all outcomes since a time again."`
	Plan     sinksPlan     `cmd:"" help:"Print what an app's table lacks for a sink of kind sql."`
	Keys     sinksKeys     `cmd:"" help:"Print the public key (JWK Set) that verifies a sink's Security Event Tokens."`
	WhoKnows sinksWhoKnows `cmd:"" help:"Say who has acknowledged a user's last sign-out, and when."`
}

// sinkOffice is an open connection to the stored state of the sinks.
type sinkOffice struct {
	*admin.Sinks
	conf  *settings.Settings
	close func()
}

func (f clientFlags) openSinks(ctx context.Context, a *app, c *cli) (*sinkOffice, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, err
	}
	if len(conf.Sinks) == 0 {
		return nil, settings.Mistake(errors.New("there is no sink in the settings: see " +
			"docs/sinks.md"))
	}
	nc, err := a.connect(conf, f.Server)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err == nil {
		var s *admin.Sinks
		if s, err = admin.OpenSinks(ctx, js, conf); err == nil {
			return &sinkOffice{s, conf, nc.Close}, nil
		}
	}
	nc.Close()
	return nil, bucketHint(err, a, "sink")
}

// sinkFlags name a sink.
type sinkFlags struct {
	clientFlags
	Name string `arg:"" help:"The sink's name in the settings."`
}

func (f sinkFlags) open(ctx context.Context, a *app, c *cli) (*sinkOffice, error) {
	s, err := f.openSinks(ctx, a, c)
	if err != nil {
		return nil, err
	}
	if _, ok := s.conf.Sinks[f.Name]; !ok {
		s.close()
		return nil, settings.Mistake(fmt.Errorf("sink %q is not in the settings: there is %v",
			f.Name, s.conf.SinkNames()))
	}
	return s, nil
}

type sinksList struct {
	clientFlags
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json (one a line)."`
}

// Run lists the sinks.
func (l sinksList) Run(ctx context.Context, a *app, c *cli) error {
	s, err := l.openSinks(ctx, a, c)
	if err != nil {
		return err
	}
	defer s.close()
	lines, err := s.List(ctx, time.Now())
	if err != nil {
		return streamHint(err, a)
	}
	if l.Output == "json" {
		for _, line := range lines {
			if err := json.NewEncoder(a.stdout).Encode(line); err != nil {
				return err
			}
		}
		return nil
	}
	return printSinks(a.stdout, lines)
}

func printSinks(to io.Writer, lines []admin.SinkLine) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SINK\tKIND\tTARGET\tSTATE\tBEHIND\tQUEUED\tWAITING\tDEAD\tLAST FAILURE")
	for _, l := range lines {
		behind := time.Duration(l.LagSeconds * float64(time.Second)).Truncate(time.Second)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%s\n", l.Name, l.Kind,
			plain.Text(l.Target), l.State,
			settings.FormatDuration(behind), l.Queued, l.Waiting, l.Dead,
			plain.Text(cmp.Or(l.Reason, "-")))
	}
	return w.Flush()
}

type sinksShow struct {
	sinkFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// shownSink is a sink as `sinks show` prints it.
type shownSink struct {
	admin.SinkLine
	Waits       []sink.Waits  `json:"waits"`
	DeadLetters []sink.Letter `json:"dead_letters"`
}

// Run shows one sink.
func (s sinksShow) Run(ctx context.Context, a *app, c *cli) error {
	o, err := s.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	shown := shownSink{}
	shown.SinkLine, err = o.Look(ctx, s.Name, time.Now())
	if err == nil {
		shown.Waits, err = o.Bucket().Waiting(ctx, s.Name)
	}
	if err == nil {
		shown.DeadLetters, err = o.Bucket().Letters(ctx, s.Name)
	}
	if err != nil {
		return err
	}
	if s.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(shown)
	}
	return shown.print(a.stdout)
}

func (s shownSink) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	lag := time.Duration(s.LagSeconds * float64(time.Second))
	for _, row := range [][2]string{
		{"sink", s.Name},
		{"kind", s.Kind},
		{"target", s.Target},
		{"state", s.State},
		{"since", plain.Clock(s.Since)},
		{"by", s.By},
		{"reason, or last failure", s.Reason},
		{"run by", s.Host},
		{"last delivery", plain.Clock(s.DeliveredAt)},
		{"behind", settings.FormatDuration(lag.Truncate(time.Second))},
		{"queued", fmt.Sprint(s.Queued)},
		{"waiting", fmt.Sprint(s.Waiting)},
		{"dead letters", fmt.Sprint(s.Dead)},
	} {
		if row[1] != "" && row[1] != "-" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], plain.Text(row[1]))
		}
	}
	if len(s.Waits) > 0 {
		fmt.Fprintln(w, "\nWAITS FOR\tOUTCOMES\tTRIES\tNEXT TRY\tERROR")
	}
	for _, one := range s.Waits {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", whom(one.Provider, one.User), one.Outcomes,
			one.Tries, plain.Clock(one.Next), plain.Text(one.Error))
	}
	if len(s.DeadLetters) > 0 {
		fmt.Fprintln(w, "\nDEAD LETTER\tTYPE\tOF\tGIVEN UP\tTRIES\tERROR")
	}
	for _, l := range s.DeadLetters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", plain.Text(l.ID), l.Type,
			whom(l.Provider, l.User), plain.Clock(l.At), l.Tries, plain.Text(l.Error))
	}
	return w.Flush()
}

// whom is the user, or else the provider, that a line is about.
func whom(provider, user string) string {
	if user == "" {
		return cmp.Or(provider, "-")
	}
	return plain.Text(grant.Key{Provider: provider, User: user}.String())
}

type sinksPause struct {
	sinkFlags
	operatorFlags
	Note string `help:"Why."`
}

// Run pauses a sink.
func (s sinksPause) Run(ctx context.Context, a *app, c *cli) error {
	by, err := s.who(a)
	if err == nil {
		err = checkWords(by, s.Note)
	}
	if err != nil {
		return err
	}
	o, err := s.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	if err := s.record(ctx, a, o.conf, s.Server, schema.ActSinksPause, s.Name); err != nil {
		return err
	}
	state := sink.State{State: sink.Paused, By: by, Reason: s.Note, Since: time.Now().UTC()}
	if err := o.Bucket().SetState(ctx, s.Name, state); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s is paused until: %s sinks resume %s\n", s.Name, a.name,
		s.Name)
	return err
}

type sinksResume struct {
	sinkFlags
	operatorFlags
}

// Run has a sink deliver again.
func (s sinksResume) Run(ctx context.Context, a *app, c *cli) error {
	o, err := s.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	was, err := o.Bucket().StateOf(ctx, s.Name)
	if err != nil {
		return err
	}
	if was.State == sink.Live {
		_, err = fmt.Fprintf(a.stdout, "%s is neither paused nor disabled: nothing to do\n", s.Name)
		return err
	}
	if err := s.record(ctx, a, o.conf, s.Server, schema.ActSinksResume, s.Name); err != nil {
		return err
	}
	if err := o.Bucket().SetState(ctx, s.Name, sink.State{State: sink.Live,
		Since: time.Now().UTC()}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s goes on where it stopped\n", s.Name)
	return err
}

type sinksRetry struct {
	sinkFlags
	operatorFlags
	User     string `help:"Only the dead letters of this user."`
	Provider string `placeholder:"ID" help:"Provider's id of that user. Default: the first in the settings."`
}

// Run delivers dead letters again.
func (s sinksRetry) Run(ctx context.Context, a *app, c *cli) error {
	o, err := s.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	of := schema.Event{Provider: cmp.Or(s.Provider, o.conf.DefaultProvider()), User: s.User}
	if err := (eventFlags{Provider: of.Provider, User: s.User}).check(); err != nil {
		return err
	}
	letters, err := o.Bucket().Letters(ctx, s.Name)
	if err != nil {
		return err
	}
	if err := s.record(ctx, a, o.conf, s.Server, schema.ActSinksRetry, s.Name); err != nil {
		return err
	}
	if err := o.Bucket().Retry(ctx, s.Name, of); err != nil {
		return err
	}
	n := 0
	for _, l := range letters {
		if s.User == "" || l.User == s.User && l.Provider == of.Provider {
			n++
		}
	}
	_, err = fmt.Fprintf(a.stdout, "%s delivered to %s again, and what waits is tried at once\n",
		plain.Counted(n, "dead letter is", "dead letters are"), s.Name)
	return err
}

type sinksReplay struct {
	sinkFlags
	operatorFlags
	Since string `required:"" placeholder:"WHEN" help:"1h (ago), 2026-01-31, or an RFC 3339 time. What the sink has not had yet comes in any case."`
}

// Run delivers outcomes again.
func (s sinksReplay) Run(ctx context.Context, a *app, c *cli) error {
	since, err := parseTime(s.Since, time.Now())
	if err != nil {
		return settings.Mistake(fmt.Errorf("--since %w", err))
	}
	if since.IsZero() {
		return settings.Mistake(errors.New("--since: missing: since when?"))
	}
	o, err := s.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	if err := s.record(ctx, a, o.conf, s.Server, schema.ActSinksReplay, s.Name); err != nil {
		return err
	}
	if err := o.Bucket().Replay(ctx, s.Name, since); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s gets all outcomes since %s again\n", s.Name,
		plain.Clock(since))
	return err
}

type sinksWhoKnows struct {
	clientFlags
	User     string `arg:"" help:"The user's id, as the provider writes it."`
	Provider string `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there."`
	Output   string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run tells which receivers know of a sign-out. Its exit code is 1 if a receiver does not know.
func (s sinksWhoKnows) Run(ctx context.Context, a *app, c *cli) error {
	o, err := s.openSinks(ctx, a, c)
	if err != nil {
		return err
	}
	defer o.close()
	k := grant.Key{Provider: cmp.Or(s.Provider, o.conf.DefaultProvider()), User: s.User}
	if err := (eventFlags{Provider: k.Provider, User: k.User}).check(); err != nil {
		return err
	}
	known, err := o.WhoKnows(ctx, k)
	if err != nil {
		return streamHint(err, a)
	}
	if s.Output == "json" {
		err = json.NewEncoder(a.stdout).Encode(known)
	} else {
		err = printKnowledge(a.stdout, k, known)
	}
	for _, one := range known.Who {
		if !one.Knows && err == nil {
			err = errSilent
		}
	}
	return err
}

func printKnowledge(to io.Writer, k grant.Key, known admin.Knowledge) error {
	if known.Sequence == 0 {
		_, err := fmt.Fprintf(to, "no sign-out of %s is stored\n", plain.Text(k.String()))
		return err
	}
	fmt.Fprintf(to, "%s of %s at %s, id %s\n", known.Type, plain.Text(k.String()),
		plain.Clock(known.At), plain.Text(known.Outcome))
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHO\tKIND\tKNOWS\tSINCE")
	for _, one := range known.Who {
		knows := "no: " + one.Why
		if one.Knows {
			knows = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", one.Name, one.Kind, knows, plain.Clock(one.At))
	}
	return w.Flush()
}

type sinksPlan struct {
	Name string `arg:"" help:"The sink's name in the settings."`
}

// Run prints the statements that an app's table lacks. It changes nothing.
func (p sinksPlan) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	s, ok := conf.Sinks[p.Name]
	if !ok || s.Kind != settings.KindSQL {
		return settings.Mistake(fmt.Errorf("%q is no sink of kind sql in the settings", p.Name))
	}
	plan, err := admin.PlanSink(ctx, s)
	if err != nil {
		return fmt.Errorf("look at table %s: %w", s.Table, err)
	}
	if len(plan) == 0 {
		fmt.Fprintln(a.stderr, "the table has all that the sink needs")
	}
	for _, statement := range plan {
		fmt.Fprintln(a.stdout, plain.Text(statement))
	}
	return nil
}

type sinksKeys struct {
	Name string `arg:"" help:"The sink's name in the settings."`
}

// Run prints the public key of a sink, for its receiver.
func (k sinksKeys) Run(a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	s, ok := conf.Sinks[k.Name]
	if !ok || s.Kind != settings.KindWebhook || s.Format != settings.FormatSET {
		return settings.Mistake(fmt.Errorf("%q is no webhook of format set in the settings",
			k.Name))
	}
	keys, err := admin.SinkKeys(s)
	if err != nil {
		return settings.Mistake(fmt.Errorf("sinks.%s.set_key: %w", k.Name, err))
	}
	_, err = fmt.Fprintf(a.stdout, "%s\n", keys)
	return err
}
