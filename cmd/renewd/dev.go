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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/demo"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

type devCommand struct {
	Users    int           `default:"25" help:"How many users. Default: 25."`
	Lifetime time.Duration `type:"duration" default:"20s" placeholder:"DURATION" help:"Life of an access token. Default: 20s."`
	EndEvery time.Duration `type:"duration" default:"15s" placeholder:"DURATION" help:"How often the provider ends somebody's session. Default: 15s."`
}

// devOptions are the options that tests change.
type devOptions struct {
	standIn      string // where the stand-in listens
	summaryEvery time.Duration
}

const (
	devNATS    = "127.0.0.1:4222"
	devHTTP    = "127.0.0.1:7460"
	devStandIn = "127.0.0.1:7470"
	devClient  = "renewd-dev"
	devFolder  = "dev" // below data_dir, so that real grants never meet the stand-in's
	devState   = "stand-in.json"
)

// Run tries renewd out: everything embedded, a stand-in for PropelAuth, and an app that signs its
// users in.
func (d devCommand) Run(ctx context.Context, a *app, c *cli) error {
	if c.File != "" {
		return settings.Mistake(errors.New("dev takes no settings file: it brings its own " +
			"provider, store and NATS; to run with yours: " + a.name + " serve"))
	}
	if d.Users < 1 || d.Users > 10_000 || d.Lifetime < 3*time.Second || d.EndEvery < time.Second {
		return settings.Mistake(errors.New(
			"want --users from 1 to 10000, --lifetime of 3s or more, --end-every of 1s or more",
		))
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
	fmt.Fprintf(w.screen,
		"renewd dev: NATS, a store and a stand-in for PropelAuth with %s, "+
			"all in this process; data in %s\n",
		plain.Plural(d.Users, "user"), conf.DataDir)
	err = a.serve(ctx, conf, daemon.Options{
		Log: daemon.NewLogger(w.logs(), conf),
		Below: []daemon.Service{
			func(ctx context.Context) error {
				return daemon.ServeHTTP(ctx, l, w.standIn, slog.New(slog.DiscardHandler))
			},
			w.keep,
		},
		Above: []func(context.Context, daemon.Running) error{
			w.run,
			func(ctx context.Context, _ daemon.Running) error { return w.summarise(ctx) },
		},
	})
	w.screen.end()
	if err == nil {
		fmt.Fprintln(a.stdout, "stopped; start again to go on with the same users")
	}
	return err
}

// devSettings may be set for this command too. The rest of the environment describes a real
// installation, which must not meet the stand-in.
func devSettings() []string {
	return []string{
		"RENEWD_DATA_DIR", "RENEWD_NATS_LISTEN", "RENEWD_NATS_USER", "RENEWD_NATS_PASSWORD",
		"RENEWD_NATS_PASSWORD_FILE", "RENEWD_NATS_TOKEN",
		"RENEWD_NATS_TOKEN_FILE", "RENEWD_NATS_PREFIX", "RENEWD_HTTP_ADDR", "RENEWD_HTTP_TOKEN",
		"RENEWD_HTTP_TOKEN_FILE", "RENEWD_LOG_LEVEL",
		"RENEWD_LOG_FORMAT", "RENEWD_DRAIN_TIMEOUT",
	}
}

// settings are this command's own, with the changes of the environment.
func (d devCommand) settings(
	ctx context.Context, a *app, provider string,
) (*settings.Settings, error) {
	// A server sets aside the room that a limit allows. This server should start on any disk.
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
	// If a default port is taken, the next free port is used. A port that the environment names
	// must be free.
	for name, addr := range map[string]string{
		"RENEWD_NATS_LISTEN": devNATS,
		"RENEWD_HTTP_ADDR":   devHTTP,
	} {
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
	environ = append(environ, "RENEWD_AUTH_URL="+provider, "RENEWD_CLIENT_ID="+devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true")
	conf, err := settings.Load("", environ)
	if err != nil {
		return nil, settings.Mistake(err)
	}
	conf.DataDir = filepath.Join(conf.DataDir, devFolder)
	// Everything goes faster here, so a refused user is asked again after seconds. Renewals are
	// spread, to see them come one by one.
	policy := &conf.Providers[0].Policy
	policy.Floor, policy.RetryMax = time.Second, 10*time.Second
	policy.ConfirmMin, policy.ConfirmMax = 2*time.Second, 3*time.Second
	policy.JitterShare = 0.4
	return conf, nil
}

// listenNear listens on addr, or on a free port after it.
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
		if l, err := daemon.Listen(ctx, net.JoinHostPort(host, strconv.Itoa(first+n))); err == nil {
			return l, nil
		}
	}
	return daemon.Listen(ctx, net.JoinHostPort(host, "0"))
}

// devWorld is dev's part beside renewd: the stand-in, the app, and the display of both.
type devWorld struct {
	command devCommand
	app     *app
	conf    *settings.Settings
	standIn *standin.Server
	screen  *screen
	colour  palette
	score   *score
}

func newDevWorld(d devCommand, a *app, conf *settings.Settings) *devWorld {
	return &devWorld{
		command: d,
		app:     a,
		conf:    conf,
		standIn: standin.New(standin.Options{Lifetime: d.Lifetime, ClientID: devClient}),
		screen:  newScreen(a.stdout),
		colour:  colours(a.stdout, a.environ),
		score:   newScore(time.Now()),
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
		return fmt.Errorf("%s: %w: delete %s to start over", w.statePath(), err, w.conf.DataDir)
	}
	return nil
}

// keep saves the stand-in's sessions every second and at the end, so that little is lost if this
// process is killed: a provider without its sessions would refuse all users.
func (w *devWorld) keep(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		raw, err := w.standIn.Save()
		if err == nil {
			err = keyfile.ReplaceFile(w.statePath(), raw)
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
func (w *devWorld) run(ctx context.Context, up daemon.Running) error {
	nc, err := up.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	secret, err := w.client(ctx, nc)
	if err != nil {
		return err
	}
	w.hints(up.NATSURL, up.HTTPAddr, secret)
	d := demo.App{
		StandIn: w.standIn, Provider: w.conf.Providers[0].ID, Prefix: w.conf.NATSPrefix,
		Users: w.command.Users, EndEvery: w.command.EndEvery, EditEvery: 7 * time.Second,
		Say:  func(text string) { fmt.Fprintln(w.screen, w.colour.paint("2", text)) },
		Seen: w.show,
	}
	return d.Run(ctx, nc)
}

func (w *devWorld) show(e schema.Event) error {
	w.score.add(e)
	return printLine(w.screen, w.colour, e)
}

// devHTTPClient is the client that dev makes at each start, with a fresh secret.
const devHTTPClient = "demo"

// client makes a client that may do everything over HTTP, and returns its secret.
func (w *devWorld) client(ctx context.Context, nc *nats.Conn) (secret string, err error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return "", err
	}
	kv, err := js.KeyValue(ctx, w.conf.Subjects().Name(topology.BucketClients))
	if err != nil {
		return "", fmt.Errorf("open the bucket of clients: %w", err)
	}
	if err := clients.Remove(ctx, kv, devHTTPClient); err != nil &&
		!errors.Is(err, clients.ErrNotFound) {
		return "", err
	}
	c, secret, err := clients.New(devHTTPClient, clients.Rights(), nil, time.Now())
	if err != nil {
		return "", err
	}
	return secret, clients.Add(ctx, kv, c)
}

// hints says what to try from a second terminal.
func (w *devWorld) hints(nats, http, secret string) {
	call, at := w.app.name, ""
	if nats != "nats://"+devNATS {
		at = " --server " + nats
		fmt.Fprintf(w.screen, "%s is not free or not wanted: NATS listens on %s\n", devNATS, nats)
	}
	fmt.Fprintf(w.screen, `
Its users sign in now; after that only timers drive it. Try, from a second terminal:

  %[1]s publish refresh-due --user %[2]s --want tokens --wait%[3]s
  %[1]s token %[2]s --show%[3]s
  %[1]s subscribe --type user.reauth_required%[3]s
  %[1]s replay --since 10m --user %[2]s%[3]s
  RENEWD_DATA_DIR=%[4]s %[1]s user show %[2]s%[3]s
  curl http://%[5]s/metrics

An app without NATS reads a fresh access token, and hears when a user must sign in again:

  SECRET=%[6]s
  curl -H "Authorization: Bearer $SECRET" http://%[5]s/v1/users/%[7]s/%[2]s/token
  curl -N -H "Authorization: Bearer $SECRET" -H "Accept: text/event-stream" http://%[5]s/v1/outcomes

Ctrl-C stops it.

`, call, demo.User(0), at, w.conf.DataDir, http, secret, w.conf.Providers[0].ID)
}
