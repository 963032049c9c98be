package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
)

type userCommand struct {
	Show    userShow    `cmd:"" help:"Show what is stored about a user, without secrets."`
	List    userList    `cmd:"" help:"List users by their status, without secrets."`
	Suspend userSuspend `cmd:"" help:"Have a user rest: nothing is renewed and no token is handed out, until resume or a login."`
	Resume  userResume  `cmd:"" help:"End a suspension, and renew the user."`
	Clean   userClean   `cmd:"" help:"Show whose session ended long ago, and why; erase them with --yes."`
	Forget  userForget  `cmd:"" help:"Erase a user everywhere: store, streams, audit log."`
	Hash    userHash    `cmd:"" help:"Print what stands for a user in logs where user_ids is hashed."`
}

// userFlags name a user.
type userFlags struct {
	clientFlags
	User     string `arg:"" help:"The user's id, as the provider writes it."`
	Provider string `placeholder:"ID" help:"Provider's id in renewd's settings. Default: the first there, else propelauth."`
}

// open connects to the store and the streams, and names the user. If keyless, open goes on without
// a keyring, and no tokens can be opened then.
func (f userFlags) open(
	ctx context.Context, a *app, c *cli, keyless bool,
) (*daemon.Resources, grant.Key, error) {
	conf, err := a.load(c)
	if err != nil {
		return nil, grant.Key{}, err
	}
	if f.Provider == "" {
		f.Provider = conf.DefaultProvider()
	}
	if err := (eventFlags{Provider: f.Provider, User: f.User}).check(); err != nil {
		return nil, grant.Key{}, err
	}
	p, err := a.openResources(ctx, conf, f.Server)
	if keyless && errors.Is(err, fs.ErrNotExist) {
		p, err = a.openResourcesWith(ctx, conf, f.Server, nil)
	}
	if err == nil {
		a.doubt(ctx, conf, p.NC, f.Provider)
	}
	return p, grant.Key{Provider: f.Provider, User: f.User}, err
}

// openResources connects to the store and the streams of the settings, as serve does, but changes
// nothing, and has the store keys alone.
func (a *app) openResources(
	ctx context.Context, conf *settings.Settings, server string,
) (*daemon.Resources, error) {
	files := keyfile.Of(conf).For(seal.UseStore)
	ring, err := files.LoadOnly(ctx, seal.UseStore)
	if err != nil {
		return nil, a.keysHint(err)
	}
	return a.openResourcesWith(ctx, conf, server, daemon.NewLiveKeys(files, ring, nil))
}

// openResourcesWith is openResources with these keys; nil: without keys.
func (a *app) openResourcesWith(
	ctx context.Context, conf *settings.Settings, server string, keys *daemon.LiveKeys,
) (*daemon.Resources, error) {
	nc, err := a.connect(conf, server)
	if err != nil {
		return nil, err
	}
	p, err := daemon.Attach(ctx, conf, nc, keys)
	if err != nil {
		return nil, streamHint(err, a)
	}
	return p, nil
}

type userShow struct {
	userFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run shows a user.
func (u userShow) Run(ctx context.Context, a *app, c *cli) error {
	p, k, err := u.open(ctx, a, c, true)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := admin.Show(ctx, p, k)
	if errors.Is(err, grant.ErrNotFound) {
		return fmt.Errorf("%s: no such user is stored: did a user.login of theirs ever arrive? "+
			"See: %s replay --user %s", k, a.name, k.User)
	}
	if err != nil {
		return err
	}
	if s.Unopened {
		fmt.Fprintln(a.stderr,
			"without the keyring the token's fingerprint and expiry are not shown")
	}
	if u.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(s)
	}
	return printShown(a.stdout, s)
}

func printShown(to io.Writer, s admin.Shown) error {
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" && value != "-" && value != "0" {
			fmt.Fprintf(w, "%s\t%s\n", name, plain.Text(value))
		}
	}
	row("user", s.Provider+"/"+s.User)
	row("status", string(s.Status))
	row("version", fmt.Sprint(s.Version))
	switch {
	case s.Fingerprint != "":
		row("refresh token", s.Fingerprint+" (fingerprint)")
	case !s.Unopened:
		row("refresh token", "none")
	}
	for _, t := range []struct {
		name string
		at   time.Time
	}{
		{"access token expires", s.ExpiresAt}, {"next renewal", s.NextDueAt},
		{"signed in", s.LoginAt}, {"tokens renewed", s.RefreshedAt},
		{"profile stored", s.SyncedAt}, {"last failure", s.FailedAt},
		{"last asked for", s.ActiveAt}, {"claimed until", s.ClaimedTill},
	} {
		row(t.name, plain.Clock(t.at))
	}
	row("last error", s.LastError)
	row("own failures in a row", fmt.Sprint(s.Attempts))
	row("outages in a row", fmt.Sprint(s.Outages))
	if s.Outages > 0 {
		row("failing since", plain.Clock(s.FailingSince))
	}
	if s.Verdict != nil {
		row("refused",
			s.Verdict.Reason+plain.InBrackets(s.Verdict.Code)+" at "+plain.Clock(s.Verdict.At))
		if s.Verdict.Unsure && !s.Verdict.Confirmed {
			row("",
				"in words that renewd does not know: told to sign in again if "+
					"others are renewed meanwhile")
		}
	}
	if s.Profile != nil {
		row("name", s.Profile.Name)
		row("email", s.Profile.Email)
		for _, o := range s.Profile.Organisations {
			row("organisation", o.Name+plain.InBrackets(o.Role))
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

// Run erases a user: revoke, leave a tombstone, wait for workers, purge, tell.
func (u userForget) Run(ctx context.Context, a *app, c *cli) error {
	by, err := u.who(a)
	if err != nil {
		return err
	}
	p, k, err := u.open(ctx, a, c, false)
	if err != nil {
		return err
	}
	defer p.Close()
	if !u.Yes {
		return settings.Mistake(fmt.Errorf("this erases %s from the store, the streams and the "+
			"audit log, for good: add --yes", k))
	}
	err = admin.Erase(ctx, p, admin.Erasure{Key: k, By: by, NoRevoke: u.NoRevoke})
	if err != nil {
		return eraseHint(err, a)
	}
	_, err = fmt.Fprintf(a.stdout, "erased %s\n", k)
	return err
}

// eraseHint is streamHint, and adds the next step where this NATS user may not erase.
func eraseHint(err error, a *app) error {
	if errors.Is(err, stream.ErrMayNotErase) {
		return fmt.Errorf("%w: connect as one who may, RENEWD_NATS_USER=operator "+
			"as `%s nats config` has it", err, a.name)
	}
	return streamHint(err, a)
}
