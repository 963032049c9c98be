package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

type userCommand struct {
	Show   userShow   `cmd:"" help:"Show what is stored about a user, without secrets."`
	Forget userForget `cmd:"" help:"Erase a user everywhere: store, streams, audit log."`
}

// userFlags name a user.
type userFlags struct {
	clientFlags
	User     string `arg:"" help:"The user's id, as the provider writes it."`
	Provider string `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there, else propelauth."`
}

// open connects to the store and the streams, and names the user.
func (f userFlags) open(ctx context.Context, a *app, c *cli) (*plant, grant.Key, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, grant.Key{}, err
	}
	if f.Provider == "" {
		f.Provider = conf.defaultProvider()
	}
	if err := (eventFlags{Provider: f.Provider, User: f.User}).check(); err != nil {
		return nil, grant.Key{}, err
	}
	p, err := a.openPlant(ctx, conf, f.Server)
	return p, grant.Key{Provider: f.Provider, User: f.User}, err
}

// openPlant connects to the store and the streams of the settings, as serve does, but changes nothing.
func (a *app) openPlant(ctx context.Context, conf *configuration, server string) (*plant, error) {
	tel, err := newTelemetry(ctx, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	p := &plant{conf: conf, log: slog.New(slog.DiscardHandler), tel: tel}
	if p.keys, err = loadKeys(conf.keysFile()); err != nil {
		return nil, a.keysHint(err)
	}
	if p.nc, err = a.connect(conf, server); err != nil {
		return nil, err
	}
	if p.js, err = jetstream.New(p.nc); err == nil {
		if p.engine, err = clientEngine(p.nc, conf); err == nil {
			err = p.openStore(ctx)
		}
	}
	if err != nil {
		p.close()
		return nil, streamHint(err, a)
	}
	return p, nil
}

type userShow struct {
	userFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// shown is a grant as `user show` prints it.
type shown struct {
	Provider    string          `json:"provider"`
	User        string          `json:"user"`
	Status      grant.Status    `json:"status"`
	Version     int64           `json:"version"`
	Fingerprint string          `json:"refresh_token_fingerprint,omitempty"`
	ExpiresAt   time.Time       `json:"expires_at,omitzero"`
	NextDueAt   time.Time       `json:"next_due_at,omitzero"`
	LoginAt     time.Time       `json:"login_at,omitzero"`
	RefreshedAt time.Time       `json:"refreshed_at,omitzero"`
	SyncedAt    time.Time       `json:"synced_at,omitzero"`
	FailedAt    time.Time       `json:"failed_at,omitzero"`
	ActiveAt    time.Time       `json:"active_at,omitzero"`
	LastError   string          `json:"last_error,omitempty"`
	Attempts    int             `json:"attempts,omitempty"`
	Outages     int             `json:"outages,omitempty"`
	Verdict     *grant.Verdict  `json:"verdict,omitempty"`
	ClaimedTill time.Time       `json:"claimed_until,omitzero"`
	Profile     *schema.Profile `json:"profile,omitempty"`
}

// Run shows a user.
func (u userShow) Run(ctx context.Context, a *app, c *cli) error {
	p, k, err := u.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer p.close()
	g, err := p.store.Load(ctx, k)
	if errors.Is(err, grant.ErrNotFound) {
		return fmt.Errorf("%s: no such user is stored: did a user.login of theirs ever arrive? See: %s replay --user %s", k, a.name, k.User)
	}
	if err != nil {
		return err
	}
	profile, err := g.Profile.Decode()
	if err != nil {
		return fmt.Errorf("%s: %w", k, err)
	}
	s := shown{
		g.Provider, g.User, g.Status, g.Version, g.Fingerprint(), g.Pair.ExpiresAt, g.NextDueAt, g.LoginAt, g.RefreshedAt, g.SyncedAt, g.FailedAt,
		g.ActiveAt, g.LastError, g.Attempts, g.Outages, g.Verdict, time.Time{}, profile,
	}
	if g.Claim != nil {
		s.ClaimedTill = g.Claim.Until
	}
	if u.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(s)
	}
	return s.print(a.stdout)
}

func (s shown) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" && value != "-" && value != "0" {
			fmt.Fprintf(w, "%s\t%s\n", name, printable(value))
		}
	}
	row("user", s.Provider+"/"+s.User)
	row("status", string(s.Status))
	row("version", fmt.Sprint(s.Version))
	row("refresh token", s.Fingerprint+" (fingerprint)")
	for _, t := range []struct {
		name string
		at   time.Time
	}{
		{"access token expires", s.ExpiresAt}, {"next renewal", s.NextDueAt}, {"signed in", s.LoginAt}, {"tokens renewed", s.RefreshedAt},
		{"profile stored", s.SyncedAt}, {"last failure", s.FailedAt}, {"last asked for", s.ActiveAt}, {"claimed until", s.ClaimedTill},
	} {
		row(t.name, clock(t.at))
	}
	row("last error", s.LastError)
	row("own failures in a row", fmt.Sprint(s.Attempts))
	row("outages in a row", fmt.Sprint(s.Outages))
	if s.Verdict != nil {
		row("refused", s.Verdict.Reason+inBrackets(s.Verdict.Code)+" at "+clock(s.Verdict.At))
	}
	if s.Profile != nil {
		row("name", s.Profile.Name)
		row("email", s.Profile.Email)
		for _, o := range s.Profile.Organisations {
			row("organisation", o.Name+inBrackets(o.Role))
		}
	}
	return w.Flush()
}

type userForget struct {
	userFlags
	Yes bool `help:"Do it. Without this flag nothing is erased."`
}

// forgetClaim is how long an erasure waits for whoever has the user in hand, and then keeps others away.
const (
	forgetClaim = time.Minute
	forgetRetry = 250 * time.Millisecond
)

// Run erases a user: claim, delete, purge, tell.
func (u userForget) Run(ctx context.Context, a *app, c *cli) error {
	p, k, err := u.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer p.close()
	if !u.Yes {
		return usageError{fmt.Errorf("this erases %s from the store, the streams and the audit log, for good: add --yes", k)}
	}
	began := time.Now().UTC()
	cause := schema.Cause{ID: nuid.Next(), Type: "user.forget", Source: "/renewd/cli", Time: began}
	version, err := p.forget(ctx, k, cause)
	if err != nil {
		return fmt.Errorf("%w; some of it may be erased: run this again", err)
	}
	data, err := json.Marshal(schema.Forgotten{Cause: cause, BeganAt: began})
	if err != nil {
		return err
	}
	// The mark keeps a record that comes back with an older backup from being renewed.
	err = p.engine.PublishMarked(ctx, schema.Event{
		ID: grant.OutcomeID(k, cause.ID), Source: source, Type: schema.UserForgotten, Provider: k.Provider, User: k.User, Time: began, Data: data,
	}, grant.Mark{Version: version + 1})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "erased %s\n", k)
	return err
}

// forget erases what is there, waits for what workers have in hand, and erases what these have left. A login that came
// later stays. It returns the latest version that the record had.
func (p *plant) forget(ctx context.Context, k grant.Key, cause schema.Cause) (version int64, err error) {
	newest, err := p.engine.NewestLogin(ctx)
	if err != nil {
		return 0, err
	}
	published, err := p.engine.Newest(ctx, k)
	if err != nil {
		return 0, err
	}
	if version, err = p.erase(ctx, k, cause); err != nil {
		return 0, err
	}
	version = max(version, published.Version)
	if err := p.engine.Erase(ctx, k, newest); err != nil {
		return 0, err
	}
	settling, cancel := context.WithTimeoutCause(ctx, forgetClaim, errors.New("a worker is busy with it for long"))
	defer cancel()
	if err := p.engine.Settle(settling, k.Provider); err != nil {
		return 0, err
	}
	g, err := p.store.Load(ctx, k)
	if err == nil && !newest.Before(g.Login) { // a login that was in hand
		version = max(version, g.Version)
		_, err = p.erase(ctx, k, cause)
	}
	if err != nil && !errors.Is(err, grant.ErrNotFound) {
		return 0, err
	}
	return version, p.engine.EraseTraces(ctx, k)
}

// erase takes the record out of the store, once whoever has it in hand is done, and returns its version.
func (p *plant) erase(ctx context.Context, k grant.Key, cause schema.Cause) (version int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, forgetClaim, errors.New("it stays in use; try again"))
	defer cancel()
	for {
		g, _, err := p.store.Claim(ctx, k, grant.ClaimRequest{Nonce: cause.ID, For: forgetClaim, Cause: cause})
		if err == nil {
			err = p.store.Delete(ctx, k, g.Revision)
		}
		switch {
		case err == nil, errors.Is(err, grant.ErrNotFound):
			return g.Version, nil
		case !errors.Is(err, grant.ErrClaimed) && !errors.Is(err, grant.ErrConflict):
			return 0, fmt.Errorf("erase %s: %w", k, err)
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("erase %s: %w: %w", k, context.Cause(ctx), err)
		case <-time.After(forgetRetry):
		}
	}
}
