package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

type userCommand struct {
	Show   userShow   `cmd:"" help:"Show what is stored about a user, without secrets."`
	Forget userForget `cmd:"" help:"Erase a user everywhere: store, streams, audit log."`
	Hash   userHash   `cmd:"" help:"Print what stands for a user in logs where user_ids is hashed."`
}

// userFlags name a user.
type userFlags struct {
	clientFlags
	User     string `arg:"" help:"The user's id, as the provider writes it."`
	Provider string `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there, else propelauth."`
}

// open connects to the store and the streams, and names the user. Without a keyring it goes on if
// keyless, and no tokens can be opened then.
func (f userFlags) open(
	ctx context.Context, a *app, c *cli, keyless bool,
) (*plant, grant.Key, error) {
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
	if keyless && errors.Is(err, fs.ErrNotExist) {
		p, err = a.openPlantWith(ctx, conf, f.Server, nil)
	}
	if err == nil {
		a.doubt(ctx, conf, p.nc, f.Provider)
	}
	return p, grant.Key{Provider: f.Provider, User: f.User}, err
}

// openPlant connects to the store and the streams of the settings, as serve does, but changes
// nothing.
func (a *app) openPlant(ctx context.Context, conf *configuration, server string) (*plant, error) {
	ring, err := conf.keyFile().load(ctx)
	if err != nil {
		return nil, a.keysHint(err)
	}
	return a.openPlantWith(ctx, conf, server, newLiveKeys(conf.keyFile(), ring, nil))
}

// openPlantWith is openPlant with these keys, or without any: nil.
func (a *app) openPlantWith(
	ctx context.Context, conf *configuration, server string, keys *liveKeys,
) (*plant, error) {
	tel, err := newTelemetry(ctx, nil, slog.New(slog.DiscardHandler), nil)
	if err != nil {
		return nil, err
	}
	conf.DatabaseMigrate = false
	p := &plant{conf: conf, log: slog.New(slog.DiscardHandler), tel: tel, keys: keys}
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
	Provider    string       `json:"provider"`
	User        string       `json:"user"`
	Status      grant.Status `json:"status"`
	Version     int64        `json:"version"`
	Fingerprint string       `json:"refresh_token_fingerprint,omitempty"`
	ExpiresAt   time.Time    `json:"expires_at,omitzero"`
	NextDueAt   time.Time    `json:"next_due_at,omitzero"`
	LoginAt     time.Time    `json:"login_at,omitzero"`
	RefreshedAt time.Time    `json:"refreshed_at,omitzero"`
	SyncedAt    time.Time    `json:"synced_at,omitzero"`
	FailedAt    time.Time    `json:"failed_at,omitzero"`
	ActiveAt    time.Time    `json:"active_at,omitzero"`
	LastError   string       `json:"last_error,omitempty"`
	Attempts    int          `json:"attempts,omitempty"`
	Outages     int          `json:"outages,omitempty"`
	// FailingSince is when the first of the outages in a row was.
	FailingSince time.Time       `json:"failing_since,omitzero"`
	Verdict      *grant.Verdict  `json:"verdict,omitempty"`
	ClaimedTill  time.Time       `json:"claimed_until,omitzero"`
	Profile      *schema.Profile `json:"profile,omitempty"`
	unopened     bool            // there was no keyring to open the tokens with
}

// Run shows a user.
func (u userShow) Run(ctx context.Context, a *app, c *cli) error {
	p, k, err := u.open(ctx, a, c, true)
	if err != nil {
		return err
	}
	defer p.close()
	g, err := p.store.Load(ctx, k)
	unopened := errors.Is(err, errNoKeys)
	if unopened {
		err = nil
		fmt.Fprintln(a.stderr, "without the keyring the token's fingerprint and expiry are not shown")
	}
	if errors.Is(err, grant.ErrNotFound) || err == nil && g.Status == grant.Forgotten {
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
		g.ActiveAt, g.LastError, g.Attempts, g.Outages, g.FailingSince, g.Verdict, time.Time{}, profile, unopened,
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
	switch {
	case s.Fingerprint != "":
		row("refresh token", s.Fingerprint+" (fingerprint)")
	case !s.unopened:
		row("refresh token", "none")
	}
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
	if s.Outages > 0 {
		row("failing since", clock(s.FailingSince))
	}
	if s.Verdict != nil {
		row("refused", s.Verdict.Reason+inBrackets(s.Verdict.Code)+" at "+clock(s.Verdict.At))
		if s.Verdict.Unsure && !s.Verdict.Confirmed {
			row("", "in words that nobody knows: told to sign in again if others are renewed meanwhile")
		}
	}
	if s.Profile != nil {
		row("name", s.Profile.Name)
		row("email", s.Profile.Email)
		for _, o := range s.Profile.Organisations {
			row("organisation", o.Name+inBrackets(o.Role))
		}
		row("groups", strings.Join(s.Profile.Groups, ", "))
		row("roles", strings.Join(s.Profile.Roles, ", "))
	}
	return w.Flush()
}

type userForget struct {
	userFlags
	byFlags
	Yes      bool `help:"Do it. Without this flag nothing is erased."`
	NoRevoke bool `help:"Leave the user's session at the provider as it is. Without this flag the refresh token is revoked first."`
}

// forgetClaim is how long an erasure waits for whoever has the user in hand, and then keeps others
// away.
const (
	forgetClaim = time.Minute
	forgetRetry = 250 * time.Millisecond
	// forgetLook is longer than any worker goes on with a user, publishing included, without
	// looking whether there still is one.
	forgetLook = 12 * time.Second
)

// Run erases a user: revoke, leave a tombstone, settle, purge, tell.
func (u userForget) Run(ctx context.Context, a *app, c *cli) error {
	by, err := u.who(a)
	if err != nil {
		return err
	}
	p, k, err := u.open(ctx, a, c, false)
	if err != nil {
		return err
	}
	defer p.close()
	if !u.Yes {
		return usageError{fmt.Errorf("this erases %s from the store, the streams and the audit log, for good: add --yes", k)}
	}
	if known, err := p.knows(ctx, k); !known || err != nil {
		return cmp.Or(err, fmt.Errorf("nothing is known of %s, so that nothing was erased: is the id as the provider writes it?", k))
	}
	if err := p.engine.MayErase(ctx); err != nil {
		if errors.Is(err, stream.ErrMayNotErase) {
			err = fmt.Errorf("%w: connect as one who may, RENEWD_NATS_USER=operator "+
				"as `%s nats config` has it", err, a.name)
		}
		return fmt.Errorf("nothing is erased: %w", streamHint(err, a))
	}
	began := time.Now().UTC()
	cause := schema.Cause{ID: nuid.Next(), Type: "user.forget", Source: "/renewd/cli", Time: began}
	revoke := p.revoke
	if u.NoRevoke {
		revoke = func(context.Context, grant.Key, []grant.Secret) error { return nil }
	}
	version, err := p.forget(ctx, k, cause, revoke)
	if err != nil {
		return fmt.Errorf("%w; some of it may be erased: run this again", err)
	}
	data, err := json.Marshal(schema.Forgotten{Cause: cause, BeganAt: began, By: by})
	if err != nil {
		return err
	}
	// The mark keeps a record that comes back with an older backup from being renewed.
	err = p.engine.PublishMarked(ctx, schema.Event{
		ID: grant.OutcomeID(k, cause), Source: source, Type: schema.UserForgotten, Provider: k.Provider, User: k.User, Time: began, Data: data,
	}, grant.Mark{Version: version + 1})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "erased %s\n", k)
	return err
}

// knows reports whether the store or the streams hold anything about a user.
func (p *plant) knows(ctx context.Context, k grant.Key) (bool, error) {
	if _, err := p.store.Load(ctx, k); !errors.Is(err, grant.ErrNotFound) {
		return true, nil // what it says is for the erasure to see
	}
	return p.engine.Knows(ctx, k)
}

// forget leaves a tombstone in the record's place, so that no login of before brings the user back,
// and only then waits for what workers have in hand, and erases all that is left of the user. A
// login that comes later stays. It returns the version of the tombstone.
func (p *plant) forget(ctx context.Context, k grant.Key, cause schema.Cause, revoke revoke) (version int64, err error) {
	newest, err := p.engine.NewestLogin(ctx)
	if err != nil {
		return 0, err
	}
	published, err := p.engine.Newest(ctx, k)
	if err != nil {
		return 0, err
	}
	g, err := p.entomb(ctx, k, newest, grant.Turn{Work: grant.Work{Cause: cause, Mark: published}, Nonce: cause.ID, Now: p.engine.Now()}, revoke)
	if err != nil {
		return 0, err
	}
	if err := p.rearm(ctx, k); err != nil { // a login that came later does not wait for the rest
		return 0, err
	}
	// First settle, then purge: a purge takes what is in hand out of the streams' sight.
	settling, cancel := context.WithTimeoutCause(ctx, forgetClaim, errors.New("a worker is busy with it for long"))
	defer cancel()
	look := time.After(forgetLook)
	if err := p.engine.Settle(settling, k.Provider); err != nil {
		return 0, err
	}
	<-look
	if err := p.engine.Erase(ctx, k, newest); err != nil {
		return 0, err
	}
	return g.Version, p.rearm(ctx, k)
}

// rearm has a login that came after an erasure looked at, at once: what waited for it, and what
// services were told of it, was erased with the rest.
func (p *plant) rearm(ctx context.Context, k grant.Key) error {
	g, err := p.store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound), errors.Is(err, grant.ErrUnreadable):
		return nil
	case err != nil:
		return err
	case g.Candidate != nil:
		return p.engine.Request(ctx, k, grant.Work{Cause: g.Candidate.Cause})
	case g.Status == grant.Live && !g.NextDueAt.IsZero():
		now := p.engine.Now()
		return p.engine.Arm(ctx, k, now, g.NextTimer(now))
	}
	return nil
}

// entomb puts a tombstone in the record's place, once whoever has it in hand is done, and revokes
// the tokens that were there before that.
func (p *plant) entomb(
	ctx context.Context, k grant.Key, upTo grant.Order, t grant.Turn, revoke revoke,
) (grant.Grant, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, forgetClaim, errors.New("it stays in use; try again"))
	defer cancel()
	for {
		g, _, err := p.store.Claim(ctx, k, grant.ClaimRequest{Nonce: t.Nonce, For: forgetClaim, Cause: t.Work.Cause})
		if errors.Is(err, grant.ErrNotFound) || errors.Is(err, grant.ErrUnreadable) {
			err = nil // nothing to keep others from
		} else if err == nil {
			if err := revoke(ctx, k, g.Revocable(upTo)); err != nil { // again for what came meanwhile: a dead token is revoked too
				return g, err
			}
		}
		if err == nil {
			tomb := g.Erased(k, upTo, t)
			tomb.Claim = nil
			if tomb.Revision, err = p.store.Save(ctx, tomb); err == nil {
				return tomb, nil
			}
		}
		if !errors.Is(err, grant.ErrClaimed) && !errors.Is(err, grant.ErrConflict) {
			return g, fmt.Errorf("erase %s: %w", k, err)
		}
		select {
		case <-ctx.Done():
			return g, fmt.Errorf("erase %s: %w: %w", k, context.Cause(ctx), err)
		case <-time.After(forgetRetry):
		}
	}
}

// revoke ends the sessions of a user that these refresh tokens are of.
type revoke func(ctx context.Context, k grant.Key, tokens []grant.Secret) error

// revoke is one at the provider.
func (p *plant) revoke(ctx context.Context, k grant.Key, tokens []grant.Secret) error {
	settings, ok := p.conf.provider(k.Provider)
	if !ok {
		return fmt.Errorf("provider %s is not in the settings, so that its session of %s cannot be revoked: add it, or say --no-revoke", k.Provider, k.User)
	}
	client, err := p.client(settings)
	if err != nil {
		return err
	}
	for _, token := range tokens {
		if err := client.Revoke(ctx, token); err != nil && !errors.Is(err, grant.ErrNoRevocation) {
			return fmt.Errorf("nothing is erased yet: the provider did not revoke the user's session: %w; try again, or say --no-revoke to leave it alive there", err)
		}
	}
	return nil
}
