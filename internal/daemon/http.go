package daemon

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

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
)

// probe is one condition of the process's readiness.
type probe struct {
	name  string
	check func(context.Context) error
}

// adminHandler answers the requests to the HTTP server.
type adminHandler struct {
	probes   func() []probe
	services http.HandlerFunc // has its own clients, and asks for their secrets
	metrics  http.Handler
	jwks     func() []byte
	signed   func(context.Context) ([]byte, error)
	schemas  fs.FS
	token    secret.Value
	// open: the listener is on loopback, so without a token in the settings everything is shown.
	open   bool
	logger *slog.Logger
}

// handler routes to all of it. Health is for everybody; the rest needs the token.
func (s adminHandler) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		Reply(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", s.readyz())
	mux.Handle("GET /metrics", s.guard(s.metrics))
	publicKeys := func(w http.ResponseWriter, _ *http.Request) {
		jwks := s.jwks()
		if jwks == nil {
			http.Error(w, "starting, or without login keys (take_logins is false): see /readyz",
				http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "max-age=60")
		_, _ = w.Write(jwks)
	}
	mux.Handle("GET /.well-known/jwks.json", s.guard(http.HandlerFunc(publicKeys)))
	mux.Handle("GET /.well-known/jwks.jwt", s.guard(signedKeys(s.signed)))
	mux.Handle("GET /schemas/",
		s.guard(http.StripPrefix("/schemas/", http.FileServerFS(s.schemas))))
	mux.Handle("/v1/", s.services)
	return mux
}

// signedKeys answers GET /.well-known/jwks.jwt: the public keys as a root signed them (OpenID
// Federation 1.0, section 5.2.1), for publishers that may not read the bucket.
func signedKeys(get func(context.Context) ([]byte, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		signed, err := get(r.Context())
		switch {
		case err != nil:
			const why = "NATS does not answer, or renewd is starting: see /readyz"
			http.Error(w, why, http.StatusServiceUnavailable)
		case signed == nil:
			const why = "no root has signed the keys: renewd keys sign, " +
				"renewd keys publish --signed"
			http.Error(w, why, http.StatusNotFound)
		default:
			w.Header().Set("Content-Type", "application/jwk-set+jwt")
			w.Header().Set("Cache-Control", "max-age=60")
			_, _ = w.Write(signed)
		}
	}
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Status string            `json:"status"` // ok or unready
	Checks map[string]string `json:"checks"` // ok, or what is wrong
}

const (
	probeLimit = 2 * time.Second
	// probeFor is how long one answer serves all callers: asking more often costs the store and
	// NATS nothing.
	probeFor = time.Second
)

// readyz asks the probes. The reason of a failing probe names hosts and users. Only callers who may
// see the rest get the reason; other callers are told where to look.
func (s adminHandler) readyz() http.HandlerFunc {
	var mu sync.Mutex
	var last Readiness
	var at time.Time
	ask := func(ctx context.Context) Readiness {
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
					answer.Checks[name] = "fails: see the log, or ask with the " +
						"token of RENEWD_HTTP_TOKEN"
				}
			}
		}
		Reply(w, status, answer)
	}
}

// probe asks every probe.
func (s adminHandler) probe(ctx context.Context) Readiness {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	answer := Readiness{Status: "ok", Checks: map[string]string{}}
	for _, p := range s.probes() {
		answer.Checks[p.name] = "ok"
		if err := p.check(ctx); err != nil {
			answer.Checks[p.name], answer.Status = err.Error(), "unready"
		}
	}
	return answer
}

func Reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// guard lets through callers who may see more than health.
func (s adminHandler) guard(next http.Handler) http.Handler {
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

// refusal is the status and the reason for which r may not see more than health; 0: r may.
func (s adminHandler) refusal(r *http.Request) (code int, why string) {
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
		return http.StatusUnauthorized, "want Authorization: Bearer and the " +
			"token of RENEWD_HTTP_TOKEN"
	}
	return 0, ""
}

// namesThisMachine reports whether a Host header is loopback's, with a port or without one.
func namesThisMachine(host string) bool {
	if _, _, err := net.SplitHostPort(host); err != nil {
		host = net.JoinHostPort(strings.Trim(host, "[]"), "0")
	}
	return settings.Loopback(host)
}

// listenTLS is Listen for HTTPS where there is a certificate.
func listenTLS(ctx context.Context, conf *settings.Settings) (net.Listener, error) {
	if conf.HTTPCert == "" {
		return Listen(ctx, conf.HTTPAddr)
	}
	c, err := loadCertificate(conf.HTTPCert, conf.HTTPKey)
	if err != nil {
		return nil, settings.Mistake(fmt.Errorf("http_cert: %w", err))
	}
	l, err := Listen(ctx, conf.HTTPAddr)
	if err != nil {
		return nil, err
	}
	return tls.NewListener(l, c.server()), nil
}

// Listen opens the listener of the HTTP server, so that a port in use is an error at start.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("http_addr: %w: stop what listens there, or set RENEWD_HTTP_ADDR",
			err)
	}
	return l, nil
}

const httpStopLimit = 3 * time.Second

// ServeHTTP serves h on l until ctx ends.
func ServeHTTP(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
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
