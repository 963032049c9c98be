package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/schema"
)

type serveCommand struct{}

// Run runs renewd until ctx ends, then drains.
func (serveCommand) Run(ctx context.Context, a *app, c *cli) error {
	conf, err := a.load(c)
	if err != nil {
		return err
	}
	if len(conf.Providers) == 0 {
		return usageError{errors.New("no provider is set: set RENEWD_AUTH_URL and RENEWD_CLIENT_ID, or list providers in the file that RENEWD_CONFIG names; to try renewd without one: " + a.name + " dev")}
	}
	return a.serve(ctx, conf, newLogger(a.stderr, &conf.settings), nil)
}

// serve brings everything up and runs it until ctx ends or a part fails. extra are parts of the
// command that called: below what renewd stands on, and above what stands on it.
func (a *app) serve(ctx context.Context, conf *configuration, log *slog.Logger, extra func(*plant, *front) (below, above []part)) error {
	a.names, log = conf.names, conf.names.Logger(log)
	tel, err := newTelemetry(ctx, a.environ, log, conf.names)
	if err != nil {
		return err
	}
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := tel.stop(flush); err != nil {
			log.Warn("the last figures may not have been exported", "error", err)
		}
	}()
	listener, err := listenTLS(ctx, conf)
	if err != nil {
		return err
	}
	// HTTP is there before the rest is, to say what start-up waits for, and goes last.
	f := &front{conf: conf, metrics: tel.metrics, log: log, addr: listener.Addr().String()}
	err = runLayers(ctx, []part{f.part(listener)}, []part{func(ctx context.Context) error {
		return a.work(ctx, conf, log, tel, f, extra)
	}})
	if err == nil {
		log.Info("renewd has stopped; nothing is in hand")
	}
	return err
}

// work builds the plant and runs it.
func (a *app) work(ctx context.Context, conf *configuration, log *slog.Logger, tel *telemetry, f *front, extra func(*plant, *front) (below, above []part)) error {
	p, err := build(ctx, conf, a.environ, log, tel, f.waitFor)
	if err != nil {
		return unlessStopped(ctx, err)
	}
	layers, err := p.layers()
	if err != nil {
		p.close()
		return unlessStopped(ctx, err)
	}
	if extra != nil {
		below, above := extra(p, f)
		layers[0] = append(layers[0], below...)
		layers = append(layers, above)
	}
	layers[len(layers)-1] = append(layers[len(layers)-1], p.reach)
	f.plant.Store(p)
	log.Info("renewd is up", "version", version, "nats", conf.natsText(), "store", conf.storeText(), "providers", len(conf.Providers), "http", f.addr)
	return runLayers(ctx, layers...)
}

// unlessStopped makes no error of being told to stop while starting.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// front is the HTTP server's view of a program that is coming up, or is up.
type front struct {
	conf    *configuration
	metrics http.Handler
	log     *slog.Logger
	addr    string // where it listens
	waits   atomic.Pointer[string]
	plant   atomic.Pointer[plant]
}

// waitFor notes what start-up is about to wait for.
func (f *front) waitFor(what string) {
	f.log.Info("starting", "part", what)
	f.waits.Store(&what)
}

func (f *front) probes() []probe {
	if p := f.plant.Load(); p != nil {
		return p.ready()
	}
	return []probe{{"start", func(context.Context) error {
		if what := f.waits.Load(); what != nil {
			return errors.New("starting, waiting for " + *what)
		}
		return errors.New("starting")
	}}}
}

func (f *front) jwks() []byte {
	if p := f.plant.Load(); p != nil {
		return p.keys.JWKS()
	}
	return nil
}

// part is the HTTP server on l.
func (f *front) part(l net.Listener) part {
	s := surface{
		probes: f.probes, metrics: f.metrics, jwks: f.jwks, schemas: schema.Files(), token: f.conf.HTTPToken, open: loopback(f.conf.HTTPAddr), logger: f.log,
	}
	return func(ctx context.Context) error { return serveHTTP(ctx, l, s.handler(), f.log) }
}
