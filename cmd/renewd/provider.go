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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

type providerCommand struct {
	List   providerList   `cmd:"" help:"Say of each provider in the settings whether it is renewed, and why not."`
	Show   providerShow   `cmd:"" help:"Show what is known of one provider's health."`
	Pause  providerPause  `cmd:"" help:"Leave a provider alone: no user is renewed there, and no user is signed out."`
	Check  providerCheck  `cmd:"" help:"Ask a provider itself what it is like, and say what settings suit it."`
	Accept providerAccept `cmd:"" help:"Believe that a provider is where its discovery document says now, at other hosts than before."`
	Resume providerResume `cmd:"" help:"End a pause, and try at once what the breaker or a doubt holds back."`
}

// providerRecords are the records of the providers' health.
type providerRecords struct {
	conf   *settings.Settings
	nc     *nats.Conn
	bucket jetstream.KeyValue
	now    func() time.Time
}

// openHealth connects to the bucket of the providers' health.
func (a *app) openHealth(ctx context.Context, c *cli, f clientFlags) (*providerRecords, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, err
	}
	nc, err := a.connect(conf, f.Server)
	if err != nil {
		return nil, err
	}
	h := &providerRecords{conf: conf, nc: nc}
	engine, err := daemon.ClientEngine(nc, conf)
	if err == nil {
		h.now = engine.Now
		err = engine.SyncClock(ctx)
	}
	if err == nil {
		var js jetstream.JetStream
		if js, err = jetstream.New(nc); err == nil {
			h.bucket, err = js.KeyValue(ctx, conf.Subjects().Name(topology.BucketProviders))
		}
	}
	if err != nil {
		nc.Close()
		return nil, streamHint(err, a)
	}
	return h, nil
}

// providerFlags name a provider.
type providerFlags struct {
	clientFlags
	Provider string `arg:"" optional:"" help:"Its id in the settings. Default: the only one there."`
}

// open connects to the bucket of the providers' health, and names the provider.
func (f providerFlags) open(ctx context.Context, a *app, c *cli) (*providerRecords, string, error) {
	h, err := a.openHealth(ctx, c, f.clientFlags)
	if err != nil {
		return nil, "", err
	}
	id, err := h.conf.KnownProvider(f.Provider)
	if err != nil {
		h.nc.Close()
		return nil, "", settings.Mistake(err)
	}
	return h, id, nil
}

// standing is a provider's health as `provider list` prints it.
type standing struct {
	Provider string `json:"provider"`
	// State is ok, paused (by an operator), down (its renewals pause), doubted (its refusals are
	// not believed) or untried.
	State  string    `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Until is the end of a pause, or the time of the next try.
	Until time.Time `json:"until,omitzero"`
	By    string    `json:"by,omitempty"`
	Note  string    `json:"note,omitempty"`
	Hint  string    `json:"hint,omitempty"`
}

func standingOf(id string, s health.State) standing {
	switch {
	case s.Paused != nil:
		return standing{
			Provider: id,
			State:    "paused",
			Reason:   health.ReasonPaused,
			Since:    s.Paused.Since,
			Until:    s.Paused.Until,
			By:       s.Paused.By,
			Note:     s.Paused.Note,
			Hint:     health.Hint(health.ReasonPaused),
		}
	case s.Outage != nil:
		return standing{
			Provider: id,
			State:    "down",
			Reason:   s.Outage.Reason,
			Since:    s.Outage.Since,
			Until:    s.Outage.Until,
			Hint:     health.Hint(s.Outage.Reason),
		}
	case s.Doubt != nil:
		return standing{
			Provider: id,
			State:    "doubted",
			Reason:   s.Doubt.Reason,
			Since:    s.Doubt.Since,
			Until:    s.Doubt.Until,
			Hint:     health.Hint(s.Doubt.Reason),
		}
	case s.ProvenAt.IsZero():
		return standing{
			Provider: id,
			State:    "untried",
			Hint: "no user was renewed with these settings yet; " +
				"until one is, a refusal signs no user out",
		}
	}
	return standing{Provider: id, State: "ok", Since: s.ProvenAt}
}

type providerList struct {
	clientFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json, one provider a line."`
}

// Run lists the providers.
func (l providerList) Run(ctx context.Context, a *app, c *cli) error {
	h, err := a.openHealth(ctx, c, l.clientFlags)
	if err != nil {
		return err
	}
	defer h.nc.Close()
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	if l.Output == "text" {
		fmt.Fprintln(w, "PROVIDER\tSTATE\tREASON\tSINCE\tUNTIL\tBY")
	}
	for _, id := range h.conf.ProviderIDs() {
		s, _, err := health.Load(ctx, h.bucket, id)
		if err != nil {
			return err
		}
		line := standingOf(id, s)
		if l.Output == "json" {
			if err := json.NewEncoder(a.stdout).Encode(line); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n",
			line.Provider, line.State, cmp.Or(line.Reason, "-"),
			plain.Clock(line.Since), plain.Clock(line.Until), plain.Text(cmp.Or(line.By, "-")))
	}
	return w.Flush()
}

type providerShow struct {
	providerFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// shownProvider is a provider's health as `provider show` prints it.
type shownProvider struct {
	standing
	ProvenAt time.Time    `json:"proven_at,omitzero"` // first renewal under the present settings
	Window   string       `json:"window"`             // of Said
	Said     health.Tally `json:"said"`               // to how many users, lately
	Waiting  int64        `json:"waiting"`            // due renewals that no worker has taken
	// Hosts are the hosts that the provider's discovery document may name, as far as no setting
	// names hosts.
	Hosts []string `json:"hosts,omitempty"`
}

// Run shows one provider.
func (p providerShow) Run(ctx context.Context, a *app, c *cli) error {
	h, id, err := p.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer h.nc.Close()
	s, _, err := health.Load(ctx, h.bucket, id)
	if err != nil {
		return err
	}
	engine, err := daemon.ClientEngine(h.nc, h.conf)
	if err != nil {
		return err
	}
	waiting, err := engine.Waiting(ctx, id)
	if err != nil {
		return streamHint(err, a)
	}
	of, _ := h.conf.Provider(id)
	window := of.Guard.Rules().WithDefaults().Window
	shown := shownProvider{standingOf(id, s), s.ProvenAt, window.String(),
		s.Said(h.now().Add(-window)), waiting, nil}
	if shown.Hosts, err = h.pins(of).Pinned(ctx); err != nil {
		return err
	}
	if p.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(shown)
	}
	return shown.print(a.stdout)
}

func (s shownProvider) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	for _, row := range [][2]string{
		{"provider", s.Provider}, {"state", s.State}, {"reason", s.Reason},
		{"since", plain.Clock(s.Since)}, {"until, or next try", plain.Clock(s.Until)},
		{"by", s.By}, {"note", s.Note}, {"settings worked since", plain.Clock(s.ProvenAt)},
		{"in the last " + s.Window, fmt.Sprintf("%d renewed, %d refused, %d refused again, "+
			"%d refused in unknown words",
			s.Said.OK, s.Said.Dead, s.Said.Again, s.Said.Unknown)},
		{"renewals waiting", fmt.Sprint(s.Waiting)}, {"hosts", hostList(s.Hosts)}, {"hint", s.Hint},
	} {
		if row[1] != "" && row[1] != "-" {
			fmt.Fprintf(w, "%s\t%s\n", row[0], plain.Text(row[1]))
		}
	}
	return w.Flush()
}

type providerPause struct {
	providerFlags
	byFlags
	Note string `help:"Why: told in provider.degraded."`
	For  string `placeholder:"DURATION" help:"For how long, 2h or 1d for instance. Default: until it is resumed."`
}

// Run pauses a provider.
func (p providerPause) Run(ctx context.Context, a *app, c *cli) error {
	by, err := p.who(a)
	if err == nil {
		err = checkWords(by, p.Note)
	}
	if err != nil {
		return err
	}
	var lasts time.Duration
	if p.For != "" {
		if lasts, err = settings.ParseDuration(p.For); err != nil || lasts <= 0 {
			return settings.Mistake(fmt.Errorf("--for: %q: want a duration such as 30m, 2h or 1d",
				p.For))
		}
	}
	h, id, err := p.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer h.nc.Close()
	pause := health.Pause{By: by, Note: p.Note, Since: h.now().UTC()}
	until := fmt.Sprintf("until %s provider resume %s", a.name, id)
	if lasts > 0 {
		pause.Until = pause.Since.Add(lasts)
		until = "until " + plain.Clock(pause.Until)
	}
	if err := health.PauseBy(ctx, h.bucket, id, pause); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s is left alone %s: every worker heeds it within seconds\n",
		id, until)
	return err
}

type providerResume struct {
	providerFlags
	byFlags
}

// Run ends a pause.
func (p providerResume) Run(ctx context.Context, a *app, c *cli) error {
	by, err := p.who(a)
	if err != nil {
		return err
	}
	h, id, err := p.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer h.nc.Close()
	switch err := health.ResumeBy(ctx, h.bucket, id, by, h.now()); {
	case errors.Is(err, health.ErrNotPaused):
		_, err = fmt.Fprintf(a.stdout, "%s is not paused: nothing to do\n", id)
		return err
	case err != nil:
		return err
	}
	_, err = fmt.Fprintf(a.stdout,
		"%s is tried again at once; if it still refuses or fails, it is left alone again\n", id)
	return err
}

// checkWords holds an operator's words against the limits of events.
func checkWords(by, note string) error {
	for name, s := range map[string]string{"--by": by, "--note": note} {
		if len(s) > schema.MaxReason || s != plain.Text(s) {
			return settings.Mistake(fmt.Errorf("%s: want at most %d bytes on one line",
				name, schema.MaxReason))
		}
	}
	if by == "" {
		return settings.Mistake(errors.New("--by: missing: who does this? It is told to everybody"))
	}
	return nil
}
