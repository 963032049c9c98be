package idp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/renewd/renewd/internal/grant"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Provider is a client of one provider.
type Provider struct {
	config Config
	preset Preset
	client *http.Client
	now    func() time.Time

	mu        sync.Mutex
	endpoints endpoints
	found     bool
}

// endpoints are where a provider is called.
type endpoints struct {
	Token    string `json:"token_endpoint"`
	UserInfo string `json:"userinfo_endpoint"`
	Revoke   string `json:"revocation_endpoint"`
}

// Telemetry is where calls are recorded: their duration and status, never a query, a body or a token. Nil fields record
// nothing.
type Telemetry struct {
	Tracers trace.TracerProvider
	Meters  metric.MeterProvider
}

// New checks c. It calls nobody: discovery waits for the first call, so that a provider that is down does not keep renewd
// from starting.
func New(c Config, t Telemetry) (*Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("provider %s: %w", c.ID, err)
	}
	c = c.withDefaults()
	p := &Provider{config: c, preset: Presets()[c.Preset], now: time.Now}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:     &tls.Config{RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second, ForceAttemptHTTP2: true,
		MaxIdleConns: c.MaxConns, MaxIdleConnsPerHost: c.MaxConns, IdleConnTimeout: 90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
	}
	var options []otelhttp.Option
	if t.Tracers != nil {
		options = append(options, otelhttp.WithTracerProvider(t.Tracers))
	}
	if t.Meters != nil {
		options = append(options, otelhttp.WithMeterProvider(t.Meters))
	}
	var round http.RoundTripper = transport
	if len(options) > 0 {
		round = otelhttp.NewTransport(transport, options...)
	}
	p.client = &http.Client{
		Transport: round,
		// A redirected POST would hand the refresh token to whoever the answer names.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	p.endpoints = endpoints{Token: c.TokenURL, UserInfo: c.UserInfoURL}
	if p.preset.TokenPath != "" && c.BaseURL != "" {
		p.endpoints.fill(endpoints{Token: c.BaseURL + p.preset.TokenPath, UserInfo: c.BaseURL + p.preset.UserInfoPath})
	}
	p.found = p.endpoints.Token != "" && p.endpoints.UserInfo != ""
	return p, nil
}

func (e *endpoints) fill(from endpoints) {
	for _, f := range []struct {
		to   *string
		from string
	}{{&e.Token, from.Token}, {&e.UserInfo, from.UserInfo}, {&e.Revoke, from.Revoke}} {
		if *f.to == "" {
			*f.to = f.from
		}
	}
}

// Settings is a fingerprint of what a refusal is judged under: the client, its authentication and the endpoint.
func (p *Provider) Settings() string {
	return grant.NewSecret(strings.Join([]string{
		p.config.BaseURL, p.config.TokenURL, p.config.ClientID, string(p.config.ClientAuth), p.config.ClientSecret.Fingerprint(),
	}, "\x00")).Fingerprint()
}

// discover finds the endpoints, once. What it brings is held against the same rules as the settings.
func (p *Provider) discover(ctx context.Context) (endpoints, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.found {
		return p.endpoints, nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.config.BaseURL)
	if err != nil {
		// go-oidc quotes the body of an answer it does not like.
		return endpoints{}, &grant.Fault{Class: grant.Unsent, Op: "discovery", Err: fmt.Errorf(
			"no OpenID configuration at %s/.well-known/openid-configuration: %w; is auth_url the issuer, exactly?", p.config.BaseURL, quiet(err))}
	}
	var found endpoints
	if err := provider.Claims(&found); err != nil {
		return endpoints{}, &grant.Fault{Class: grant.Config, Op: "discovery", Err: errors.New("the OpenID configuration is malformed")}
	}
	e := p.endpoints
	e.fill(found)
	for _, u := range []string{e.Token, e.UserInfo} {
		if err := p.config.checkURL(u); err != nil {
			return endpoints{}, &grant.Fault{Class: grant.Config, Op: "discovery", Err: fmt.Errorf("endpoint: %w", err)}
		}
	}
	p.endpoints, p.found = e, true
	return e, nil
}

// quiet keeps of an error what may be logged: which kind of network failure it was.
func quiet(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		err = ue.Err // without the URL, whose query could hold anything
	}
	if oe, ok := errors.AsType[*net.OpError](err); ok {
		return oe
	}
	for _, known := range []error{context.DeadlineExceeded, context.Canceled, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, known) {
			return known
		}
	}
	if te, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return te
	}
	return fmt.Errorf("%T", err)
}

// reply is what came back, body and all.
type reply struct {
	status int
	header http.Header
	body   []byte
	full   bool // the body is larger than the cap
	sentAt time.Time
}

// send makes one request, once. written tells whether anything of it may have reached the provider.
func (p *Provider) send(ctx context.Context, method, target string, header http.Header, form url.Values, limit int64) (_ reply, written bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	var wrote atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { wrote.Store(true) },
		WroteHeaders:     func() { wrote.Store(true) },
	})
	// net/http repeats a POST by itself only where not a byte of it was written, which is no second presentation.
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return reply{}, false, errors.New("malformed URL")
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "renewd")
	for name, values := range header {
		req.Header[name] = values
	}
	sentAt := p.now()
	resp, err := p.client.Do(req)
	if err != nil {
		return reply{}, wrote.Load(), quiet(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return reply{status: resp.StatusCode}, true, quiet(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, body: raw, sentAt: sentAt}
	if int64(len(raw)) > limit {
		r.body, r.full = nil, true
	}
	return r, true, nil
}
