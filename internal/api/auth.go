package api

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/internal/clients"
)

// Authenticator knows clients by their secrets: clients.Registry.
type Authenticator interface {
	Authenticate(secret string) (clients.Client, bool)
}

type contextKey struct{}

// caller is the client that makes a request, and its connection.
type caller struct {
	clients.Client
	still      func() bool // the secret is still of a client with the same rights and providers
	connection *http.ResponseController
}

// callerOf is the caller of a request that authenticate let through.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(contextKey{}).(caller)
	return c
}

// stays gives a request its time to wait, in place of the server's general limits. The request's
// body has been read.
func (c caller) stays(wait time.Duration) {
	_ = c.connection.SetReadDeadline(time.Time{})
	_ = c.connection.SetWriteDeadline(time.Now().Add(wait + writeLimit))
}

// writeLimit is how long a caller may take to read an answer, or a part of an answer.
const writeLimit = 10 * time.Second

// right is the key of an operation's metadata: the right that a client needs to call the operation.
const right = "right"

// signed is the key of an operation's metadata: each posted message proves its own sender, so that
// no client's secret is wanted.
const signed = "signed"

// authenticate lets a client through that may call the operation for the provider of its path.
func (a *API) authenticate(ctx huma.Context, next func(huma.Context)) {
	ctx.SetHeader("Cache-Control", "no-store")
	ctx.SetHeader("X-Content-Type-Options", "nosniff")
	if ctx.Operation().Metadata[signed] == true {
		next(ctx)
		return
	}
	if a.c.InClear {
		a.fail(ctx, problem(codeNeedsTLS, "renewd serves clients on this address with TLS only"))
		return
	}
	secret, _ := strings.CutPrefix(ctx.Header("Authorization"), "Bearer ")
	client, known := a.c.Clients.Authenticate(secret)
	if !known {
		a.refuse(ctx, a.wrong.take(host(ctx.RemoteAddr())))
		return
	}
	need, _ := ctx.Operation().Metadata[right].(clients.Right)
	provider := ctx.Param("provider")
	switch {
	case !a.limits.take(client.Name):
		a.fail(ctx, problem(codeLimited, "this client asks more often than it may"))
	case !slices.Contains(client.May, need), provider != "" && !client.MayDo(need, provider):
		a.fail(
			ctx,
			problem(
				codeForbidden,
				"client "+client.Name+" needs the right "+string(need)+" for this provider",
			),
		)
	default:
		_, w := humago.Unwrap(ctx)
		next(huma.WithValue(ctx, contextKey{}, caller{
			client, func() bool { return a.same(client, secret) }, http.NewResponseController(w),
		}))
	}
}

// same reports whether a secret is still of a client with client's rights and providers.
func (a *API) same(client clients.Client, secret string) bool {
	now, known := a.c.Clients.Authenticate(secret)
	return known && slices.Equal(now.May, client.May) &&
		slices.Equal(now.Providers, client.Providers)
}

// refuse answers a wrong secret. An address that sends many gets another answer, so that guessing
// is slow. A right secret is never refused because of wrong secrets.
func (a *API) refuse(ctx huma.Context, mayTry bool) {
	if !mayTry {
		p := problem(codeLimited, "too many wrong secrets from this address")
		p.RetryAfter = int(wrongEvery / time.Second)
		a.fail(ctx, p)
		return
	}
	a.fail(ctx, problem(codeUnauthorized, "want Authorization: Bearer and a client's secret"))
}

// fail writes a problem outside a handler.
func (a *API) fail(ctx huma.Context, p *Problem) {
	for name, values := range p.GetHeaders() {
		for _, v := range values {
			ctx.SetHeader(name, v)
		}
	}
	ctx.SetHeader("Content-Type", p.ContentType(""))
	ctx.SetStatus(p.Status)
	_ = a.huma.Marshal(ctx.BodyWriter(), "application/json", p)
}

func host(address string) string {
	h, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return h
}

const (
	// wrongEvery is how often an address may try a wrong secret, after wrongBurst wrong secrets.
	wrongEvery = 6 * time.Second
	wrongBurst = 20
	// limitersKept is how many names a limiter remembers: one half are the names used last.
	limitersKept = 8192
)

// limiters are rates by name. The memory is bounded: long unused names are forgotten, and start
// with a full burst. Safe for concurrent use.
type limiters struct {
	every rate.Limit
	burst int

	mu       sync.Mutex
	now, old map[string]*rate.Limiter
}

func newLimiters(every rate.Limit, burst int) *limiters {
	return &limiters{every: every, burst: burst, now: map[string]*rate.Limiter{}}
}

// take reports whether name may make a request now, and counts the request.
func (l *limiters) take(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	lim := l.now[name]
	if lim == nil {
		if lim = l.old[name]; lim == nil {
			lim = rate.NewLimiter(l.every, l.burst)
		}
		if len(l.now) >= limitersKept/2 {
			l.old, l.now = l.now, map[string]*rate.Limiter{}
		}
		l.now[name] = lim
	}
	return lim.Allow()
}

// notFound answers a path without an operation.
func notFound(w http.ResponseWriter, r *http.Request) {
	p := problem(codeNotFound, r.Method+" "+r.URL.Path)
	w.Header().Set("Content-Type", p.ContentType(""))
	w.WriteHeader(p.Status)
	_ = huma.DefaultJSONFormat.Marshal(w, p)
}
