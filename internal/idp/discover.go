package idp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/renewd/renewd/internal/grant"
)

// maxDiscovery is the largest discovery document that is read, in bytes.
const maxDiscovery = 1 << 20

// attempt is one discovery, shared by all calls that wait for it.
type attempt struct {
	done chan struct{} // closed at its end
	err  error         // why there is nothing; nil also if its caller gave up, which says nothing of the provider
}

// discover returns the endpoints. They are asked for by one call at a time, and the others share its
// answer instead of waiting in line for a provider that does not answer. Once they are known they
// are asked for again each day, beside the calls: whoever could change the document once does not
// get tokens for as long as the process lives. Its error is a *grant.Fault, and no token has left
// the house.
func (p *Provider) discover(ctx context.Context) (endpoints, error) {
	for {
		p.mu.Lock()
		if p.found {
			defer p.mu.Unlock()
			p.askAgain()
			return p.endpoints, nil
		}
		a := p.asking
		if a == nil {
			a = &attempt{done: make(chan struct{})}
			p.asking = a
			p.mu.Unlock()
			return p.lead(ctx, a)
		}
		p.mu.Unlock()
		select {
		case <-a.done:
		case <-ctx.Done():
			return endpoints{}, &grant.Fault{Class: grant.Unsent, Op: "discovery", Err: ctx.Err()}
		}
		if a.err != nil {
			return endpoints{}, a.err
		}
	}
}

// How old a document may be, and how long after a failure it is asked for again.
const (
	documentAge   = 24 * time.Hour
	documentRetry = time.Hour
)

// askAgain has the document read anew where it is old. What is known holds meanwhile, and also where
// that fails. The caller holds p.mu.
func (p *Provider) askAgain() {
	if p.askedAt.IsZero() || p.asking != nil || p.now().Sub(p.askedAt) < documentAge {
		return
	}
	a := &attempt{done: make(chan struct{})}
	p.asking = a
	p.asks.Go(func() { _, _ = p.lead(context.Background(), a) })
}

// lead makes the attempt that others wait for.
func (p *Provider) lead(ctx context.Context, a *attempt) (endpoints, error) {
	e, err := p.ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = nil
	switch {
	case err == nil:
		p.endpoints = p.given
		p.endpoints.fill(e)
		p.found, p.askedAt = true, p.now()
	case p.found:
		p.askedAt = p.now().Add(documentRetry - documentAge)
	case ctx.Err() == nil:
		a.err = err
	}
	close(a.done)
	return p.endpoints, err
}

// ask fetches the discovery document. What it brings is held against the same rules as the
// settings.
func (p *Provider) ask(ctx context.Context) (endpoints, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	door := &door{base: p.round, every: p.header}
	client := &http.Client{Transport: door, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), p.config.BaseURL)
	// An issuer that ends in a slash (Auth0's) is the same address without it.
	if m, ok := errors.AsType[*oidc.IssuerMismatchError](err); ok && strings.TrimRight(m.Discovered, "/") == p.config.BaseURL {
		provider, err = oidc.NewProvider(oidc.ClientContext(ctx, client), m.Discovered)
	}
	if err != nil {
		return endpoints{}, p.undiscovered(door, err)
	}
	var e endpoints
	malformed := func(err error) (endpoints, error) {
		return endpoints{}, &grant.Fault{Class: grant.Config, Op: "discovery", Status: door.status, Err: err}
	}
	if err := provider.Claims(&e); err != nil {
		return malformed(errors.New("the OpenID configuration is malformed"))
	}
	type endpoint struct{ name, setting, raw, override string }
	wanted := []endpoint{{"token_endpoint", "token_url", e.Token, p.config.TokenURL}, {"userinfo_endpoint", "userinfo_url", e.UserInfo, p.config.UserInfoURL}}
	if p.config.NoUserInfo {
		wanted[1] = endpoint{name: "jwks_uri", raw: e.Keys}
		e.identities = p.identities(provider)
	}
	for _, u := range wanted {
		if u.override != "" {
			continue
		}
		if err := p.config.checkURL(u.raw); err != nil {
			err = fmt.Errorf("the OpenID configuration's %s: %w", u.name, err)
			if u.setting != "" {
				err = fmt.Errorf("%w; %s can replace it", err, u.setting)
			}
			return malformed(err)
		}
	}
	if p.config.checkURL(e.Revoke) != nil { // nothing but Revoke needs it
		e.Revoke = ""
	}
	return e, nil
}

// undiscovered sorts why there is no document. A provider that is down is no fault of the settings.
func (p *Provider) undiscovered(d *door, err error) error {
	f := &grant.Fault{Class: grant.Unsent, Op: "discovery", Status: d.status, RetryAfter: retryAfter(d.header, p.date(d.header))}
	at := p.config.BaseURL + "/.well-known/openid-configuration"
	mismatch, mismatched := errors.AsType[*oidc.IssuerMismatchError](err)
	class, _ := Classify(Answer{Status: d.status}, nil)
	switch {
	case mismatched:
		f.Class = grant.Config
		f.Err = fmt.Errorf("%s is of the issuer %q: set auth_url to that, exactly, if it is the one you mean", at, printable(mismatch.Discovered, 200))
	case d.status == 0:
		f.Err = fmt.Errorf("no answer from %s: %w", at, quiet(err))
	case class == grant.Config, class == grant.Throttled:
		f.Class = class
		f.Err = fmt.Errorf("no OpenID configuration at %s: is auth_url the issuer, exactly?", at)
	default:
		f.Err = fmt.Errorf("no OpenID configuration at %s", at) // go-oidc quotes the body of an answer that it does not like
	}
	return f
}

// door stands between go-oidc and the network: go-oidc reads a body of any length, and puts the
// status into a text.
type door struct {
	base   http.RoundTripper
	every  http.Header // of every call
	status int         // of the last answer
	header http.Header
	away   *atomic.Bool // the last request was not answered well; nil: nobody asks
}

func (d *door) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	maps.Copy(req.Header, d.every)
	d.status, d.header = 0, nil
	resp, err := d.base.RoundTrip(req)
	if d.away != nil {
		d.away.Store(err != nil || resp.StatusCode != http.StatusOK)
	}
	if err != nil {
		return nil, err
	}
	d.status, d.header = resp.StatusCode, resp.Header
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, maxDiscovery), resp.Body}
	return resp, nil
}
