package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
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

// serve brings everything up and runs it until ctx ends or a part fails. extra are parts of the command that called.
func (a *app) serve(ctx context.Context, conf *configuration, log *slog.Logger, extra func(*plant) []part) error {
	tel, err := newTelemetry(ctx, a.environ, log)
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
	listener, err := listen(ctx, conf.HTTPAddr)
	if err != nil {
		return err
	}
	p, err := build(ctx, conf, a.environ, log, tel, func(what string) { log.Info("starting", "part", what) })
	if err != nil {
		return errors.Join(unlessStopped(ctx, err), listener.Close())
	}
	layers, err := p.layers(ctx)
	if err != nil {
		p.close()
		return errors.Join(err, listener.Close())
	}
	layers[0] = append(layers[0], p.http(listener))
	if extra != nil {
		layers = append(layers, extra(p))
	}
	log.Info("renewd is up", "version", version, "nats", conf.natsText(), "store", conf.storeText(), "providers", len(conf.Providers), "http", listener.Addr().String())
	err = runLayers(ctx, layers...)
	if err == nil {
		log.Info("renewd has stopped; nothing is in hand")
	}
	return err
}

// unlessStopped makes no error of being told to stop while starting.
func unlessStopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// http is the HTTP server as a part.
func (p *plant) http(l net.Listener) part {
	s := surface{
		probes: p.ready(), metrics: p.tel.metrics, jwks: p.keys.JWKS, schemas: schema.Files(), token: p.conf.HTTPToken,
		open: loopback(p.conf.HTTPAddr), logger: p.log,
	}
	return func(ctx context.Context) error {
		if err := serveHTTP(ctx, l, s.handler(), p.log); err != nil {
			return fmt.Errorf("http: %w", err)
		}
		return nil
	}
}
