package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/schema"
)

type devCommand struct {
	Users    int           `default:"25" help:"How many users. Default: 25."`
	Lifetime time.Duration `type:"duration" default:"20s" placeholder:"DURATION" help:"Life of an access token. Default: 20s."`
	EndEvery time.Duration `type:"duration" default:"15s" placeholder:"DURATION" help:"How often the provider ends somebody's session. Default: 15s."`
}

// devOptions are what tests of the command change.
type devOptions struct {
	standIn      string // where the stand-in listens
	summaryEvery time.Duration
}

const (
	devNATS    = "127.0.0.1:4222"
	devHTTP    = "127.0.0.1:7460"
	devStandIn = "127.0.0.1:7470"
	devClient  = "renewd-dev"
	devFolder  = "dev" // below data_dir, so that nobody's real grants meet the stand-in's
	devState   = "stand-in.json"
)

// Run tries renewd out: everything embedded, a stand-in for PropelAuth, and an app that signs its
// users in.
func (d devCommand) Run(ctx context.Context, a *app, c *cli) error {
	if c.File != "" {
		return usageError{errors.New("dev takes no settings file: it brings its own provider, store and NATS; to run with yours: " + a.name + " serve")}
	}
	if d.Users < 1 || d.Users > 10_000 || d.Lifetime < 3*time.Second || d.EndEvery < time.Second {
		return usageError{errors.New("want --users from 1 to 10000, --lifetime of 3s or more, --end-every of 1s or more")}
	}
	l, err := listenNear(ctx, cmp.Or(a.dev.standIn, devStandIn))
	if err != nil {
		return err
	}
	conf, err := d.settings(ctx, a, "http://"+l.Addr().String())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	w := newDevWorld(d, a, conf)
	if err := w.restore(); err != nil {
		return errors.Join(err, l.Close())
	}
	fmt.Fprintf(w.screen, "renewd dev: NATS, a store and a stand-in for PropelAuth with %s, all in this process; data in %s\n", plural(d.Users, "user"), conf.DataDir)
	log := newLogger(w.logs(), &conf.settings)
	err = a.serve(ctx, conf, log, func(p *plant, f *front) (below, above []part) {
		provider := func(ctx context.Context) error { return serveHTTP(ctx, l, w.standIn, slog.New(slog.DiscardHandler)) }
		return []part{provider, w.keep}, []part{func(ctx context.Context) error { return w.run(ctx, p, f) }, w.summarise}
	})
	w.screen.end()
	if err == nil {
		fmt.Fprintln(a.stdout, "stopped; start again to go on with the same users")
	}
	return err
}

// devSettings may be set for this command too. The rest of the environment describes somebody's
// real installation, which must not meet the stand-in.
func devSettings() []string {
	return []string{
		"RENEWD_DATA_DIR", "RENEWD_NATS_LISTEN", "RENEWD_NATS_USER", "RENEWD_NATS_PASSWORD", "RENEWD_NATS_PASSWORD_FILE", "RENEWD_NATS_TOKEN",
		"RENEWD_NATS_TOKEN_FILE", "RENEWD_NATS_PREFIX", "RENEWD_HTTP_ADDR", "RENEWD_HTTP_TOKEN", "RENEWD_HTTP_TOKEN_FILE", "RENEWD_LOG_LEVEL",
		"RENEWD_LOG_FORMAT", "RENEWD_DRAIN_TIMEOUT",
	}
}

// settings are this command's own, with what the environment may change of them.
func (d devCommand) settings(ctx context.Context, a *app, provider string) (*configuration, error) {
	// A server sets aside what a limit allows, and this one should start on any disk.
	environ := []string{
		"RENEWD_LOG_LEVEL=warn", "RENEWD_OUTCOME_BYTES=none", "RENEWD_COMMAND_BYTES=none",
	}
	given := map[string]bool{}
	for _, kv := range a.environ {
		name, value, _ := strings.Cut(kv, "=")
		if slices.Contains(devSettings(), name) && value != "" {
			environ = append(environ, kv)
			given[name] = true
		}
	}
	// Where others listen already, the next free port does; where the environment says which, it
	// must be that one.
	for name, addr := range map[string]string{"RENEWD_NATS_LISTEN": devNATS, "RENEWD_HTTP_ADDR": devHTTP} {
		if given[name] {
			continue
		}
		l, err := listenNear(ctx, addr)
		if err != nil {
			return nil, err
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		environ = append(environ, name+"="+l.Addr().String())
	}
	environ = append(environ, "RENEWD_AUTH_URL="+provider, "RENEWD_CLIENT_ID="+devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true")
	conf, err := load("", environ)
	if err != nil {
		return nil, usageError{err}
	}
	conf.DataDir = filepath.Join(conf.DataDir, devFolder)
	// As all goes faster here, a refused user is asked again after seconds; and renewals are
	// spread, to see them come one by one.
	policy := &conf.Providers[0].Policy
	policy.Floor, policy.ConfirmMin, policy.ConfirmMax, policy.RetryMax = time.Second, 2*time.Second, 3*time.Second, 10*time.Second
	policy.JitterShare = 0.4
	return conf, nil
}

// listenNear listens on addr, or on one of the ports after it if that is taken.
func listenNear(ctx context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return nil, err
	}
	for n := range 50 {
		if l, err := listen(ctx, net.JoinHostPort(host, strconv.Itoa(first+n))); err == nil {
			return l, nil
		}
	}
	return listen(ctx, net.JoinHostPort(host, "0"))
}

// devWorld is what dev adds to a running renewd: the stand-in, the app, and what is shown of them.
type devWorld struct {
	command devCommand
	app     *app
	conf    *configuration
	standIn *idptest.Server
	screen  *screen
	colour  palette
	score   *score
}

func newDevWorld(d devCommand, a *app, conf *configuration) *devWorld {
	return &devWorld{
		command: d, app: a, conf: conf, standIn: idptest.New(idptest.Options{Lifetime: d.Lifetime, ClientID: devClient}),
		screen: newScreen(a.stdout), colour: colours(a.stdout, a.environ), score: newScore(time.Now()),
	}
}

// logs is where the log goes: above the summary, where both are on one terminal.
func (w *devWorld) logs() interface{ Write([]byte) (int, error) } {
	if w.screen.live && isTerminal(w.app.stderr) {
		return w.screen
	}
	return w.app.stderr
}

func (w *devWorld) statePath() string { return filepath.Join(w.conf.DataDir, devState) }

// restore goes on with the sessions of the last time.
func (w *devWorld) restore() error {
	raw, err := os.ReadFile(w.statePath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = w.standIn.Load(raw)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: delete %s to start anew", w.statePath(), err, w.conf.DataDir)
	}
	return nil
}

// keep saves the stand-in's sessions every second and at the end, so that little is lost if this
// process is killed: a provider that forgot its sessions would refuse everybody.
func (w *devWorld) keep(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		raw, err := w.standIn.Save()
		if err == nil {
			err = replaceFile(w.statePath(), raw)
		}
		if err != nil {
			return fmt.Errorf("save the stand-in: %w", err)
		}
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// run is the app, on its own connection, as a service would be.
func (w *devWorld) run(ctx context.Context, p *plant, f *front) error {
	nc, err := p.server.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	w.hints(p.server.ClientURL(), f.addr)
	d := demo{
		standIn: w.standIn, provider: w.conf.Providers[0].ID, prefix: w.conf.NATSPrefix,
		users: w.command.Users, endEvery: w.command.EndEvery, editEvery: 7 * time.Second,
		say:  func(text string) { fmt.Fprintln(w.screen, w.colour.paint("2", text)) },
		seen: w.show,
	}
	return d.run(ctx, nc)
}

func (w *devWorld) show(e schema.Event) error {
	w.score.add(e)
	return printLine(w.screen, w.colour, e)
}

// hints says what to try from a second terminal.
func (w *devWorld) hints(nats, http string) {
	call, at := w.app.name, ""
	if nats != "nats://"+devNATS {
		at = " --server " + nats
		fmt.Fprintf(w.screen, "%s is not free or not wanted: NATS listens on %s\n", devNATS, nats)
	}
	fmt.Fprintf(w.screen, `
Its users sign in now; after that only timers drive it. Try, from a second terminal:

  %[1]s publish refresh-due --user %[2]s --want tokens --wait%[3]s
  %[1]s subscribe --type user.reauth_required%[3]s
  %[1]s replay --since 10m --user %[2]s%[3]s
  RENEWD_DATA_DIR=%[4]s %[1]s user show %[2]s%[3]s
  curl http://%[5]s/metrics

Ctrl-C stops it.

`, call, demoUser(0), at, w.conf.DataDir, http)
}
