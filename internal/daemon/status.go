package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

// statusServer is the HTTP server's view of a program that is starting, or is up.
type statusServer struct {
	conf    *settings.Settings
	metrics http.Handler
	log     *slog.Logger
	addr    string // where the server listens
	waits   atomic.Pointer[string]
	up      atomic.Pointer[Resources] // nil during the start
}

// waitFor notes what start-up is about to wait for.
func (f *statusServer) waitFor(what string) {
	f.log.Info("starting", "part", what)
	f.waits.Store(&what)
}

func (f *statusServer) probes() []probe {
	if p := f.up.Load(); p != nil {
		return p.ready()
	}
	return []probe{{"start", func(context.Context) error {
		if what := f.waits.Load(); what != nil {
			return errors.New("starting, waiting for " + *what)
		}
		return errors.New("starting")
	}}}
}

func (f *statusServer) jwks() []byte {
	if p := f.up.Load(); p != nil {
		return p.Keys.JWKS()
	}
	return nil
}

func (f *statusServer) signed(ctx context.Context) ([]byte, error) {
	if p := f.up.Load(); p != nil {
		return p.Engine.SignedKeys(ctx)
	}
	return nil, errors.New("starting")
}

// services answers services over HTTP, once renewd is up.
func (f *statusServer) services(w http.ResponseWriter, r *http.Request) {
	if p := f.up.Load(); p != nil {
		p.services.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Retry-After", "1")
	http.Error(w, "starting: see /readyz", http.StatusServiceUnavailable)
}

// service is the HTTP server on l.
func (f *statusServer) service(l net.Listener) Service {
	s := adminHandler{
		probes:   f.probes,
		services: f.services,
		metrics:  f.metrics,
		jwks:     f.jwks,
		signed:   f.signed,
		schemas:  schema.Files(),
		token:    f.conf.HTTPToken,
		open:     settings.Loopback(f.conf.HTTPAddr),
		logger:   f.log,
	}
	return func(ctx context.Context) error { return ServeHTTP(ctx, l, s.handler(), f.log) }
}
