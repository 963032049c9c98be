package idp

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Provider is a client of one provider.
type Provider struct {
	config    Config
	rules     []Rule            // the settings' before the preset's
	asserter  *asserter         // nil: the client shows a secret, or none
	firstWay  ClientAuth        // that the preset wants to be tried first
	header    http.Header       // of every call
	mapping   map[string]string // of members of the profile to JSON pointers
	transport *http.Transport
	round     http.RoundTripper // transport, recorded
	now       func() time.Time  // where a provider does not say what time it is
	ahead     atomic.Int64      // of now is the provider's clock, in nanoseconds, as its last answer said

	credentials credentials

	given endpoints // by the settings and the preset
	asks  sync.WaitGroup

	mu        sync.Mutex
	endpoints endpoints
	found     bool
	askedAt   time.Time // when the document was read; zero: there is none
	asking    *attempt  // the discovery under way, if any
}

// endpoints are where a provider is called, and how.
type endpoints struct {
	Token    string   `json:"token_endpoint"`
	UserInfo string   `json:"userinfo_endpoint"`
	Revoke   string   `json:"revocation_endpoint"`
	Keys     string   `json:"jwks_uri"`
	Auth     []string `json:"token_endpoint_auth_methods_supported"`

	identities identities // where there is no UserInfo
}

// Telemetry is where calls are recorded: their duration and status, never a query, a body or a
// token. Nil fields record nothing.
type Telemetry struct {
	Tracers trace.TracerProvider
	Meters  metric.MeterProvider
}

// New checks c. It calls nobody: discovery waits for the first call, so that a provider that is
// down does not keep renewd from starting.
func New(c Config, t Telemetry) (*Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("provider %s: %w", c.ID, err)
	}
	c, preset := c.withDefaults()
	p := &Provider{
		config: c, rules: slices.Concat(c.Rules, preset.Rules), firstWay: preset.ClientAuth, transport: newTransport(c), now: time.Now,
		credentials: credentials{searching: make(chan struct{}, 1)}, header: maps.Clone(everyCall),
	}
	if c.ClientAuth == AuthPrivateKey {
		var err error
		if p.asserter, err = newAsserter(c.ClientID, c.ClientKey.Reveal(), c.ClientKeyID); err != nil {
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
		p.endpoints.fill(endpoints{Token: below(c.BaseURL, preset.Token), UserInfo: below(c.BaseURL, preset.UserInfo)})
	}
	p.given = p.endpoints
	p.found = p.endpoints.Token != "" && p.endpoints.UserInfo != "" && !c.NoUserInfo
	return p, nil
}

func newTransport(c Config) *http.Transport {
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConns:        c.MaxConns, MaxIdleConnsPerHost: c.MaxConns,
		// Shorter than what servers usually have: a request that meets a closing connection may
		// have arrived, or not.
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		// All calls share one HTTP/2 connection; a dead one is to be noticed in seconds, not when
		// TCP gives up.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
	if !c.ProxyURL.IsZero() {
		u, err := url.Parse(c.ProxyURL.Reveal())
		t.Proxy = func(*http.Request) (*url.URL, error) { return u, err }
	}
	return t
}

// around puts what is wanted of t around a transport.
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

// below is a preset's address: a path below base, or one of its own.
func below(base, path string) string {
	if path == "" || strings.Contains(path, "://") {
		return path
	}
	return base + path
}

// fill takes from other what e does not have.
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

// Settings is a fingerprint of what a refusal is judged under: the client, its authentication, the
// endpoint and what is asked for. What is not set leaves no trace in it.
func (p *Provider) Settings() string {
	way := p.config.ClientAuth
	if way == AuthAuto {
		way = AuthPost // as ever, so that workers of all versions agree
	}
	all := []string{p.config.BaseURL, p.config.TokenURL, p.config.ClientID, string(way), p.config.ClientSecret.Fingerprint()}
	for _, extra := range []struct{ name, value string }{
		{"scope", p.config.Scope}, {"params", p.config.Params.Encode()}, {"client_secret_next", p.config.NextSecret.Fingerprint()},
		{"client_key", p.config.ClientKey.Fingerprint()}, {"client_key_id", p.config.ClientKeyID},
	} {
		if extra.value != "" {
			all = append(all, extra.name, extra.value)
		}
	}
	if len(p.config.Rules) > 0 { // whoever was refused in words that they name deserves another look
		all = append(all, "rules", fmt.Sprint(p.config.Rules))
	}
	for _, name := range slices.Sorted(maps.Keys(p.config.Headers)) {
		all = append(all, "headers", name, p.config.Headers[name].Fingerprint())
	}
	return grant.NewSecret(strings.Join(all, "\x00")).Fingerprint()
}

// Close drops the connections that are idle, and waits for a discovery that no call waits for. Calls
// under way end as they would.
func (p *Provider) Close() {
	p.asks.Wait()
	p.transport.CloseIdleConnections()
}
