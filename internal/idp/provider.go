package idp

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Provider is a client of one provider.
type Provider struct {
	config    Config
	log       *slog.Logger
	rules     []Rule            // the settings' rules before the preset's
	asserter  *asserter         // nil: the client shows a secret, or nothing
	firstWay  ClientAuth        // the way to try first, of the preset
	header    http.Header       // of every call
	mapping   map[string]string // of members of the profile to JSON pointers
	transport *http.Transport
	round     http.RoundTripper // transport, recorded
	now       func() time.Time  // this machine's time, where a provider does not tell its time
	// how far the provider's clock is ahead of now, in nanoseconds, by its last answer
	ahead atomic.Int64

	credentials credentials

	given  endpoints   // by the settings and the preset
	named  []string    // hosts named by the settings or the preset
	exact  bool        // no other host may be named
	inside atomic.Bool // the issuer is at an internal address

	internal func(netip.Addr) bool
	asks     sync.WaitGroup
	pins     Pins // nil: only this process remembers the hosts

	mu        sync.Mutex
	endpoints endpoints
	found     bool
	pinned    []string  // hosts a document may name; nil: not known yet
	refused   string    // the reason last logged for refusing a document
	askedAt   time.Time // when the document was read; zero: not yet
	asking    *attempt  // the discovery under way, if any
}

// endpoints are a provider's addresses, and the ways to use them.
type endpoints struct {
	Token    string   `json:"token_endpoint"`
	UserInfo string   `json:"userinfo_endpoint"`
	Revoke   string   `json:"revocation_endpoint"`
	Keys     string   `json:"jwks_uri"`
	Auth     []string `json:"token_endpoint_auth_methods_supported"`

	identities identities // if there is no userinfo endpoint
	pinned     []string   // hosts a document may name
}

// Telemetry is where calls are recorded: their duration and status, never a query, a body or a
// token. Nil fields record nothing.
type Telemetry struct {
	Log     *slog.Logger // for messages to an operator
	Tracers trace.TracerProvider
	Meters  metric.MeterProvider
}

// New checks c and makes no call. Discovery waits for the first call, so that a provider being down
// does not keep renewd from starting.
func New(c Config, t Telemetry) (*Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("provider %s: %w", c.ID, err)
	}
	c, preset := c.withDefaults()
	p := &Provider{
		config:      c,
		rules:       slices.Concat(c.Rules, preset.Rules),
		firstWay:    preset.ClientAuth,
		transport:   newTransport(c),
		now:         time.Now,
		log:         t.Log,
		internal:    internal,
		credentials: credentials{searching: make(chan struct{}, 1)},
		header:      maps.Clone(everyCall),
	}
	if c.ClientAuth == AuthPrivateKey {
		var err error
		if p.asserter, err = newAsserter(
			c.ClientID, c.ClientKey.Reveal(), c.ClientKeyID,
		); err != nil {
			return nil, fmt.Errorf("provider %s: client_key: %w", c.ID, err)
		}
	}
	p.mapping = maps.Clone(preset.Profile)
	if p.mapping == nil {
		p.mapping = map[string]string{}
	}
	maps.Copy(p.mapping, c.Profile)
	for name, value := range c.Headers {
		p.header.Set(name, value.Reveal())
	}
	p.round = t.around(p.transport)
	p.endpoints = endpoints{Token: c.TokenURL, UserInfo: c.UserInfoURL, Revoke: c.RevokeURL}
	if c.BaseURL != "" {
		p.endpoints.fill(endpoints{
			Token:    below(c.BaseURL, preset.Token),
			UserInfo: below(c.BaseURL, preset.UserInfo),
		})
	}
	p.given = p.endpoints
	p.named, p.exact = c.named(preset, p.given)
	p.transport.DialContext = p.dialer()
	p.found = p.endpoints.Token != "" && p.endpoints.UserInfo != "" && !c.NoUserInfo
	return p, nil
}

func newTransport(c Config) *http.Transport {
	t := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns:        c.MaxConns, MaxIdleConnsPerHost: c.MaxConns,
		// Shorter than usual at servers: a request on a closing connection may have arrived, or
		// not.
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		// All calls share an HTTP/2 connection. A dead connection is to be noticed in seconds, not
		// when TCP gives up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	if !c.ProxyURL.IsZero() {
		u, err := url.Parse(c.ProxyURL.Reveal())
		t.Proxy = func(*http.Request) (*url.URL, error) { return u, err }
	}
	return t
}

// around wraps a transport to record its calls in t.
func (t Telemetry) around(base http.RoundTripper) http.RoundTripper {
	var options []otelhttp.Option
	if t.Tracers != nil {
		options = append(options, otelhttp.WithTracerProvider(t.Tracers))
	}
	if t.Meters != nil {
		options = append(options, otelhttp.WithMeterProvider(t.Meters))
	}
	if len(options) == 0 {
		return base
	}
	return otelhttp.NewTransport(base, options...)
}

// Transport is for other calls to be made like p's: with p's certificates, proxy and headers, and
// not to an internal address that only a document leads to. addresses are named by the settings
// beside p's own. At most 1 MiB of an answer is read. Transport must come before the first call.
// Its result is safe for concurrent use.
func (p *Provider) Transport(addresses ...string) http.RoundTripper {
	for _, one := range addresses {
		p.named = append(p.named, hostOf(one))
	}
	return calls{p}
}

type calls struct{ p *Provider }

// RoundTrip implements http.RoundTripper.
func (c calls) RoundTrip(req *http.Request) (*http.Response, error) {
	return (&door{base: c.p.round, every: c.p.header}).RoundTrip(req)
}

// below is a preset's address: a path below base, or a whole address.
func below(base, path string) string {
	if path == "" || strings.Contains(path, "://") {
		return path
	}
	return base + path
}

// fill takes from other the fields e lacks.
func (e *endpoints) fill(other endpoints) {
	for _, f := range []struct {
		to   *string
		from string
	}{{&e.Token, other.Token}, {&e.UserInfo, other.UserInfo}, {&e.Revoke, other.Revoke}} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
	if e.Auth == nil {
		e.Auth = other.Auth
	}
	if e.identities.verifier == nil {
		e.identities = other.identities
	}
}

// Settings is a fingerprint of the settings behind a refusal: the client, its authentication, the
// endpoint and the request. An unset setting leaves no trace in the fingerprint.
func (p *Provider) Settings() string {
	way := p.config.ClientAuth
	if way == AuthAuto {
		way = AuthPost // as ever: workers of all versions must agree
	}
	all := []string{
		p.config.BaseURL, p.config.TokenURL, p.config.ClientID, string(way),
		p.config.ClientSecret.Fingerprint(),
	}
	for _, extra := range []struct{ name, value string }{
		{"scope", p.config.Scope},
		{"params", p.config.Params.Encode()},
		{"client_secret_next", p.config.NextSecret.Fingerprint()},
		{"client_key", p.config.ClientKey.Fingerprint()},
		{"client_key_id", p.config.ClientKeyID},
	} {
		if extra.value != "" {
			all = append(all, extra.name, extra.value)
		}
	}
	// a user refused in words of the rules deserves another look
	if len(p.config.Rules) > 0 {
		all = append(all, "rules", fmt.Sprint(p.config.Rules))
	}
	for _, name := range slices.Sorted(maps.Keys(p.config.Headers)) {
		all = append(all, "headers", name, p.config.Headers[name].Fingerprint())
	}
	return secret.New(strings.Join(all, "\x00")).Fingerprint()
}

// Close drops the idle connections, and waits for a discovery in the background. Calls under way
// end as usual.
func (p *Provider) Close() {
	p.asks.Wait()
	p.transport.CloseIdleConnections()
}
