package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// equipmentGC is how much the heaps of the stand-in and of the listeners grow between two
// collections, in percent. Both share the processor with the measured process, which keeps its own
// value.
const equipmentGC = 400

// lifetime of the stand-in's access tokens.
const lifetime = 30 * time.Minute

// providerCommand is the provider in a separate process.
type providerCommand struct {
	Addr  string        `required:""`
	Delay time.Duration `help:"Before each answer."`
	Grace time.Duration `help:"How long a spent refresh token is taken again."`
	Life  time.Duration `default:"30m" help:"Of access tokens."`
	Deaf  bool          `help:"Act on a request also when its client is gone."`
}

// stand is the stand-in of the tests, with additions for a benchmark: many users at a time whose
// access tokens have run out, and the time of the first request.
type stand struct {
	*standin.Server
	delay  time.Duration
	deaf   bool
	shift  atomic.Int64 // added to its clock while users sign in
	going  atomic.Bool  // the delay counts
	first  atomic.Int64 // first request since begin, in Unix ns
	logins sync.Mutex
}

// Run serves until it is killed.
func (c providerCommand) Run() error {
	debug.SetGCPercent(equipmentGC)
	s := &stand{delay: c.Delay, deaf: c.Deaf}
	o := standin.Options{
		Lifetime: c.Life,
		Signing:  standin.Opaque,
		Admin:    true,
		Now:      func() time.Time { return time.Now().Add(time.Duration(s.shift.Load())) },
	}
	if c.Grace > 0 {
		o.Rotation, o.Grace = standin.Grace, c.Grace
	}
	s.Server = standin.New(o)
	mux := http.NewServeMux()
	mux.Handle("/propelauth/", http.HandlerFunc(s.exchange))
	mux.HandleFunc("POST /bench/users", s.signIn)
	mux.HandleFunc("POST /bench/go", func(w http.ResponseWriter, _ *http.Request) {
		s.going.Store(true)
		fmt.Fprint(w, 0)
	})
	mux.HandleFunc("GET /bench/first", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, s.first.Load())
	})
	mux.Handle("/", s.Server)
	l, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return (&http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}).Serve(l)
}

// exchange waits half of the delay before it acts and half before it answers. Unless the stand-in
// is deaf, exchange does not act for a client that has gone. Every server that ends a request's
// work with the request's connection behaves like this.
func (s *stand) exchange(w http.ResponseWriter, r *http.Request) {
	if s.going.Load() {
		if s.first.Load() == 0 {
			s.first.CompareAndSwap(0, time.Now().UnixNano())
		}
		if s.delay > 0 {
			if !s.wait(r) {
				return
			}
			w = &late{ResponseWriter: w, wait: s.delay / 2}
		}
	}
	s.ServeHTTP(w, r)
}

// wait reports whether the client is still there after half of the delay.
func (s *stand) wait(r *http.Request) bool {
	var gone <-chan struct{}
	if !s.deaf {
		// A connection's end is seen only once its request was read. The handler deals with a
		// malformed form.
		_ = r.ParseForm()
		gone = r.Context().Done()
	}
	select {
	case <-time.After(s.delay / 2):
		return true
	case <-gone:
		return false
	}
}

// late waits before the answer's first byte.
type late struct {
	http.ResponseWriter
	wait time.Duration
}

// WriteHeader implements http.ResponseWriter.
func (l *late) WriteHeader(status int) {
	l.hold()
	l.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (l *late) Write(b []byte) (int, error) {
	l.hold()
	return l.ResponseWriter.Write(b)
}

func (l *late) hold() {
	if l.wait > 0 {
		<-time.After(l.wait)
		l.wait = 0
	}
}

// Unwrap is for http.NewResponseController.
func (l *late) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// signIn has users sign in and returns their tokens. The sign-ins are some time ago if the tokens
// are to be expired.
func (s *stand) signIn(w http.ResponseWriter, r *http.Request) {
	from, _ := strconv.Atoi(r.FormValue("from"))
	n, _ := strconv.Atoi(r.FormValue("n"))
	ago, _ := time.ParseDuration(r.FormValue("ago"))
	s.logins.Lock()
	defer s.logins.Unlock()
	s.shift.Store(-int64(ago))
	defer s.shift.Store(0)
	tokens := make([][2]string, n)
	for i := range tokens {
		t := s.Login(userName(from + i))
		tokens[i] = [2]string{t.Access, t.Refresh}
	}
	_ = json.NewEncoder(w).Encode(tokens) // the other end is ours, and notices an error
}

func userName(n int) string { return fmt.Sprintf("user-%07d", n) }

// provider is a running stand-in.
type provider struct {
	*process
	url    string
	before int // calls of userinfo before begin
}

func (b *bench) startProvider(delay, grace, life time.Duration, more ...string) (*provider, error) {
	addr, err := proc.FreeAddr()
	if err != nil {
		return nil, err
	}
	args := []string{
		"provider", "--addr", addr, "--delay", delay.String(), "--grace", grace.String(), "--life",
		life.String(),
	}
	cmd := exec.Command(b.self, append(args, more...)...)
	p, err := launch(b.dir, "provider", cmd)
	if err != nil {
		return nil, err
	}
	if _, err := p.line(); err != nil {
		return nil, err
	}
	return &provider{process: p, url: "http://" + addr}, nil
}

// page is how many users sign in with one request.
const page = 5000

// signIn has users sign in at a moment in the past, and returns their access and refresh tokens.
func (p *provider) signIn(
	ctx context.Context, from, n int, ago time.Duration,
) (tokens [][2]string, err error) {
	return tokens, p.ask(ctx, http.MethodPost,
		fmt.Sprintf("/bench/users?from=%d&n=%d&ago=%s", from, n, ago), &tokens)
}

// begin ends the preparations. From here on the delay counts.
func (p *provider) begin(ctx context.Context) error {
	s, err := p.stats(ctx)
	if err != nil {
		return err
	}
	p.before += s.UserInfos
	var n int
	return p.ask(ctx, http.MethodPost, "/bench/go", &n)
}

// stats counts the provider's calls since begin.
func (p *provider) stats(ctx context.Context) (s standin.Stats, err error) {
	err = p.ask(ctx, http.MethodGet, "/_admin/stats", &s)
	s.UserInfos -= p.before
	return s, err
}

// first is when the provider was first asked to renew a token, or zero if never.
func (p *provider) first(ctx context.Context) (time.Time, error) {
	var ns int64
	if err := p.ask(ctx, http.MethodGet, "/bench/first", &ns); err != nil || ns == 0 {
		return time.Time{}, err
	}
	return time.Unix(0, ns), nil
}

func (p *provider) ask(ctx context.Context, method, path string, to any) error {
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, bytes.NewReader(nil))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	return json.NewDecoder(res.Body).Decode(to)
}
