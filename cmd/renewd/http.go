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
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
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
	mux.HandleFunc("GET /readyz", s.readyz())
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

const (
	probeLimit = 2 * time.Second
	// probeFor is how long an answer serves everybody: whoever asks more often costs the store and
	// NATS nothing.
	probeFor = time.Second
)

// readyz asks the probes. Why one fails names hosts and users, and is for those who may see the
// rest; the others are told where to look.
func (s surface) readyz() http.HandlerFunc {
	var mu sync.Mutex
	var last readiness
	var at time.Time
	ask := func(ctx context.Context) readiness {
		mu.Lock()
		defer mu.Unlock()
		if last.Status == "" || time.Since(at) >= probeFor {
			before := last.Status
			if last = s.probe(ctx); before == "ok" && last.Status != "ok" {
				s.logger.Warn("not ready", "checks", last.Checks)
			}
			at = time.Now()
		}
		return last
	}
	return func(w http.ResponseWriter, r *http.Request) {
		answer, status := ask(context.WithoutCancel(r.Context())), http.StatusOK
		if answer.Status != "ok" {
			status = http.StatusServiceUnavailable
		}
		if code, _ := s.refusal(r); code != 0 {
			answer.Checks = maps.Clone(answer.Checks)
			for name, found := range answer.Checks {
				if found != "ok" {
					answer.Checks[name] = "fails: see the log, or ask with the token of RENEWD_HTTP_TOKEN"
				}
			}
		}
		reply(w, status, answer)
	}
}

// probe asks everything.
func (s surface) probe(ctx context.Context) readiness {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	answer := readiness{Status: "ok", Checks: map[string]string{}}
	for _, p := range s.probes() {
		answer.Checks[p.name] = "ok"
		if err := p.check(ctx); err != nil {
			answer.Checks[p.name], answer.Status = err.Error(), "unready"
		}
	}
	return answer
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// guard lets through who may see what is not for everybody.
func (s surface) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		code, why := s.refusal(r)
		if code == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="renewd"`)
		}
		if code != 0 {
			http.Error(w, why, code)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// refusal is the status and the reason for which r may not see what is not for everybody; 0: it may.
func (s surface) refusal(r *http.Request) (code int, why string) {
	switch {
	case s.token.IsZero() && s.open && !namesThisMachine(r.Host):
		// A page in a browser here, of a site whose name was made to point here.
		return http.StatusForbidden, "ask for localhost or 127.0.0.1, or set RENEWD_HTTP_TOKEN"
	case s.token.IsZero() && s.open:
		return 0, ""
	case s.token.IsZero():
		return http.StatusForbidden, "beyond loopback this needs a token: set RENEWD_HTTP_TOKEN"
	}
	// Digests are compared, so that the time taken tells nothing of the token, its length included.
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	want, got := sha256.Sum256([]byte(s.token.Reveal())), sha256.Sum256([]byte(given))
	if !ok || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return http.StatusUnauthorized, "want Authorization: Bearer and the token of RENEWD_HTTP_TOKEN"
	}
	return 0, ""
}

// namesThisMachine reports whether a Host header is loopback's, with a port or without one.
func namesThisMachine(host string) bool {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "0")
	}
	return loopback(host)
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
