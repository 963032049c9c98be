package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

type devCommand struct {
	Users    int           `default:"25" help:"How many users."`
	Lifetime time.Duration `type:"duration" default:"20s" placeholder:"DURATION" help:"Life of an access token. Default: 20s."`
	EndEvery time.Duration `type:"duration" default:"15s" placeholder:"DURATION" help:"How often the provider ends somebody's session. Default: 15s."`
}

// devOptions are what tests of the command change.
type devOptions struct{ summaryEvery time.Duration }

const (
	devData     = "renewd-data/dev"
	devStandIn  = "127.0.0.1:7470"
	devClient   = "renewd-dev"
	standInFile = "stand-in.json"
)

// Run tries renewd out: everything embedded, a stand-in for PropelAuth, and an app that signs its users in.
func (d devCommand) Run(ctx context.Context, a *app) error {
	idp, err := listenNear(ctx, devStandIn)
	if err != nil {
		return err
	}
	conf, err := d.settings(ctx, a, idp.Addr().String())
	if err != nil {
		return errors.Join(err, idp.Close())
	}
	dev := &devWorld{
		command: d, app: a, conf: conf, standIn: idptest.New(idptest.Options{Lifetime: d.Lifetime, ClientID: devClient}),
		colour: colours(a.stdout, a.environ), score: newScore(), again: make(chan string, d.Users),
	}
	if err := dev.restore(); err != nil {
		return errors.Join(err, idp.Close())
	}
	fmt.Fprintf(a.stdout, "renewd dev: an embedded NATS server, a store and a stand-in for PropelAuth with %d users, data in %s\n", d.Users, conf.DataDir)
	log := newLogger(a.stderr, &conf.settings)
	err = a.serve(ctx, conf, log, func(p *plant) []part {
		dev.plant = p
		return []part{
			dev.live, dev.keep,
			func(ctx context.Context) error { return serveHTTP(ctx, idp, dev.standIn, log) },
		}
	})
	if err == nil {
		fmt.Fprintln(a.stdout, dev.colour.paint("2", "stopped; start again to go on with the same users"))
	}
	return err
}

// settings are the defaults of this command under whatever the environment sets.
func (d devCommand) settings(ctx context.Context, a *app, provider string) (*configuration, error) {
	natsAt, err := freeNear(ctx, "127.0.0.1:4222")
	if err != nil {
		return nil, err
	}
	httpAt, err := freeNear(ctx, "127.0.0.1:7460")
	if err != nil {
		return nil, err
	}
	environ := []string{
		"RENEWD_NATS_LISTEN=" + natsAt, "RENEWD_HTTP_ADDR=" + httpAt, "RENEWD_DATA_DIR=" + devData, "RENEWD_LOG_LEVEL=warn",
		"RENEWD_AUTH_URL=http://" + provider, "RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	for _, kv := range a.environ {
		if !strings.HasPrefix(kv, "RENEWD_CONFIG=") && !strings.HasPrefix(kv, "RENEWD_NATS_URL=") && !strings.HasPrefix(kv, "RENEWD_AUTH_URL=") {
			environ = append(environ, kv)
		}
	}
	conf, err := load("", environ)
	if err != nil {
		return nil, usageError{err}
	}
	// A refused user is asked again after seconds, as all goes faster here.
	policy := &conf.Providers[0].Policy
	policy.Floor, policy.ConfirmMin, policy.ConfirmMax, policy.RetryMax = time.Second, 2*time.Second, 3*time.Second, 10*time.Second
	return conf, nil
}

// freeNear returns addr if it is free, else a free port beside it.
func freeNear(ctx context.Context, addr string) (string, error) {
	l, err := listenNear(ctx, addr)
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func listenNear(ctx context.Context, addr string) (net.Listener, error) {
	if l, err := listen(ctx, addr); err == nil {
		return l, nil
	}
	return listen(ctx, "127.0.0.1:0")
}

// devWorld is the app and the provider around the renewd that is tried out.
type devWorld struct {
	command devCommand
	app     *app
	conf    *configuration
	plant   *plant
	standIn *idptest.Server
	colour  palette
	score   *score
	again   chan string // users to sign in again
}

func (w *devWorld) statePath() string { return filepath.Join(w.conf.DataDir, standInFile) }

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
		return fmt.Errorf("%s: %w: delete the folder to start anew", w.statePath(), err)
	}
	return nil
}

// keep saves the stand-in's sessions, now and then and at the end.
func (w *devWorld) keep(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Second)
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

// live is the app: it signs users in, watches what comes of it, and signs those in again who must.
func (w *devWorld) live(ctx context.Context) error {
	nc, err := w.plant.server.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	pub, err := publishers.New(nc, publishers.WithPrefix(w.conf.NATSPrefix), publishers.WithSource("/dev-app"))
	if err != nil {
		return err
	}
	watched := make(chan error, 1)
	watch, stop := context.WithCancel(ctx)
	defer func() { stop(); <-watched }()
	go func() {
		watched <- consumers.Subscribe(watch, nc, consumers.Subscription{Prefix: w.conf.NATSPrefix, Since: time.Now()}, w.outcome)
		close(watched)
	}()
	for n := range w.command.Users {
		if name := devUser(n); !w.standIn.Live(name) {
			if err := w.login(ctx, pub, name); err != nil {
				return err
			}
		}
	}
	w.hints()
	return w.play(ctx, pub, watched)
}

// play lets things happen until ctx ends.
func (w *devWorld) play(ctx context.Context, pub *publishers.Publisher, watched <-chan error) error {
	every := w.app.dev.summaryEvery
	if every == 0 {
		every = 10 * time.Second
	}
	summary, end, edit := time.NewTicker(every), time.NewTicker(w.command.EndEvery), time.NewTicker(7*time.Second)
	defer summary.Stop()
	defer end.Stop()
	defer edit.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watched:
			return err
		case name := <-w.again:
			if err := w.login(ctx, pub, name); err != nil {
				return err
			}
		case <-end.C:
			name := devUser(rand.IntN(w.command.Users))
			w.standIn.EndSessions(name)
			fmt.Fprintln(w.app.stdout, w.colour.paint("2", "the provider ends the session of "+name))
		case <-edit.C:
			w.standIn.Edit(devUser(rand.IntN(w.command.Users)), func(p map[string]any) { p["mfa_enabled"] = p["mfa_enabled"] != true })
		case <-summary.C:
			fmt.Fprintln(w.app.stdout, w.colour.paint("1", w.score.String()))
		}
	}
}

func devUser(n int) string { return fmt.Sprintf("user-%02d", n+1) }

func (w *devWorld) login(ctx context.Context, pub *publishers.Publisher, name string) error {
	t := w.standIn.Login(name)
	_, err := pub.Login(ctx, w.conf.Providers[0].ID, name, publishers.Tokens{
		AccessToken: t.Access, RefreshToken: t.Refresh, ExpiresIn: time.Duration(t.ExpiresIn) * time.Second,
	})
	if err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// outcome shows an outcome, and has who must sign in again do so, as an app would.
func (w *devWorld) outcome(ctx context.Context, e schema.Event) error {
	now := time.Now()
	w.score.add(e)
	if e.Type == schema.UserReauthRequired {
		time.AfterFunc(time.Second, func() {
			select {
			case w.again <- e.User:
			case <-ctx.Done():
			}
		})
	}
	return printLine(w.app.stdout, w.colour, e, now)
}

// hints says what to try from a second terminal.
func (w *devWorld) hints() {
	call := w.app.name
	at := ""
	if w.conf.NATSListen != "127.0.0.1:4222" {
		at = " --server nats://" + w.conf.NATSListen
	}
	fmt.Fprintf(w.app.stdout, `
From now on only timers drive it. Try, from a second terminal:
  %[1]s publish refresh-due --user %[2]s --want tokens --wait%[3]s
  %[1]s subscribe --type user.reauth_required%[3]s
  %[1]s replay --since 10m --user %[2]s%[3]s
  RENEWD_DATA_DIR=%[4]s %[1]s user show %[2]s%[3]s
  curl http://%[5]s/metrics
Ctrl-C stops it.

`, call, devUser(0), at, w.conf.DataDir, w.conf.HTTPAddr)
}

// score is the summary line.
type score struct {
	mu       sync.Mutex
	began    time.Time
	counts   map[schema.Type]int
	renewed  int
	lateness []time.Duration // of timers, the last thousand
	latest   time.Duration
}

func newScore() *score { return &score{began: time.Now(), counts: map[schema.Type]int{}} }

func (s *score) add(e schema.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[e.Type]++
	d, err := schema.Data[schema.Synced](e)
	if err != nil || e.Type != schema.UserSynced || !d.Refreshed {
		return
	}
	s.renewed++
	if d.Cause.Type == schema.CauseTimer {
		late := max(0, e.Time.Sub(d.Cause.Time))
		s.latest = max(s.latest, late)
		if s.lateness = append(s.lateness, late); len(s.lateness) > 1000 {
			s.lateness = s.lateness[1:]
		}
	}
}

func (s *score) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	middle := time.Duration(0)
	if n := len(s.lateness); n > 0 {
		sorted := slices.Sorted(slices.Values(s.lateness))
		middle = sorted[n/2]
	}
	return fmt.Sprintf("── %s: %d renewals, %d syncs, %d signed in again, %d failures · late by %v in the middle, %v at most ──",
		time.Since(s.began).Round(time.Second), s.renewed, s.counts[schema.UserSynced], s.counts[schema.UserReauthRequired],
		s.counts[schema.UserRefreshFailed]+s.counts[schema.MessageRejected], middle.Round(time.Millisecond), s.latest.Round(time.Millisecond))
}
