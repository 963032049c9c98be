package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// probe is one thing that must work for the process to be ready.
type probe struct {
	name  string
	check func(context.Context) error
}

// surface is what the HTTP server shows.
type surface struct {
	probes  func() []probe
	metrics http.Handler
	jwks    func() []byte
	schemas fs.FS
	token   grant.Secret
	// open: the listener is on loopback, so what needs a token is shown without one if none is set.
	open   bool
	logger *slog.Logger
}

// handler routes to all of it. Health is for everybody; the rest needs the token.
func (s surface) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", s.guard(s.metrics))
	mux.Handle("GET /.well-known/jwks.json", s.guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		jwks := s.jwks()
		if jwks == nil {
			http.Error(w, "starting: see /readyz", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = w.Write(jwks)
	})))
	mux.Handle("GET /schemas/", s.guard(http.StripPrefix("/schemas/", http.FileServerFS(s.schemas))))
	return mux
}

// readiness is the answer of /readyz.
type readiness struct {
	Status string            `json:"status"` // ok or unready
	Checks map[string]string `json:"checks"` // ok, or what is wrong
}

const probeLimit = 2 * time.Second

func (s surface) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), probeLimit)
	defer cancel()
	answer, status := readiness{Status: "ok", Checks: map[string]string{}}, http.StatusOK
	for _, p := range s.probes() {
		answer.Checks[p.name] = "ok"
		if err := p.check(ctx); err != nil {
			answer.Checks[p.name] = err.Error()
			answer.Status, status = "unready", http.StatusServiceUnavailable
		}
	}
	reply(w, status, answer)
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// guard lets through who has the token.
func (s surface) guard(next http.Handler) http.Handler {
	// Digests are compared, so that the time taken tells nothing of the token, its length included.
	want := sha256.Sum256([]byte(s.token.Reveal()))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if s.token.IsZero() && s.open {
			next.ServeHTTP(w, r)
			return
		}
		if s.token.IsZero() {
			http.Error(w, "beyond loopback this needs a token: set RENEWD_HTTP_TOKEN", http.StatusForbidden)
			return
		}
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		got := sha256.Sum256([]byte(given))
		if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="renewd"`)
			http.Error(w, "want Authorization: Bearer and the token of RENEWD_HTTP_TOKEN", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// listenTLS is listen for HTTPS where there is a certificate.
func listenTLS(ctx context.Context, conf *configuration) (net.Listener, error) {
	if conf.HTTPCert == "" {
		return listen(ctx, conf.HTTPAddr)
	}
	c, err := loadCertificate(conf.HTTPCert, conf.HTTPKey)
	if err != nil {
		return nil, usageError{fmt.Errorf("http_cert: %w", err)}
	}
	l, err := listen(ctx, conf.HTTPAddr)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, c.server()), nil
}

// listen opens the listener of the HTTP server, so that a port in use is an error at start.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("http_addr: %w: stop what listens there, or set RENEWD_HTTP_ADDR", err)
	}
	return l, nil
}

const httpStopLimit = 3 * time.Second

// serveHTTP serves h on l until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpStopLimit)
		defer cancel()
		stopped <- server.Shutdown(bounded)
	})
	err := server.Serve(l)
	if !stop() {
		if late := <-stopped; late != nil {
			_ = server.Close()
		}
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve http: %w", err)
}
