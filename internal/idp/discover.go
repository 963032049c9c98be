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

// maxDiscovery is the size limit of a discovery document, in bytes.
const maxDiscovery = 1 << 20

// attempt is a discovery, shared by all calls waiting for its result.
type attempt struct {
	done chan struct{} // closed at its end
	// why there are no endpoints; nil also if the leading call gave up: not the provider's fault
	err error
}

// discover returns the endpoints. One call at a time asks for the endpoints, and the other calls
// share its answer instead of waiting in line for a provider that does not answer. Known endpoints
// are asked for again each day, beside the calls. So an attacker who could change the document once
// does not get tokens for as long as the process lives. The error is a *grant.Fault, and no token
// was sent.
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

// How old a document may be, and how long to wait after a failed reading.
const (
	documentAge   = 24 * time.Hour
	documentRetry = time.Hour
)

// askAgain reads the document again if it is old. Meanwhile the known endpoints stay in use, also
// if the reading fails. The caller holds p.mu.
func (p *Provider) askAgain() {
	if p.askedAt.IsZero() || p.asking != nil || p.now().Sub(p.askedAt) < documentAge {
		return
	}
	a := &attempt{done: make(chan struct{})}
	p.asking = a
	p.asks.Go(func() { _, _ = p.lead(context.Background(), a) })
}

// lead makes the attempt for which other calls wait.
func (p *Provider) lead(ctx context.Context, a *attempt) (endpoints, error) {
	e, err := p.ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asking = nil
	switch {
	case err == nil:
		p.pinned = e.pinned
		p.refused = ""
		p.endpoints = p.given
		p.endpoints.fill(e)
		p.found, p.askedAt = true, p.now()
	case p.found:
		p.tell(err)
		p.askedAt = p.now().Add(documentRetry - documentAge)
	case ctx.Err() == nil:
		p.tell(err)
		a.err = err
	}
	close(a.done)
	return p.endpoints, err
}

// ask fetches the discovery document, and checks its addresses by the same rules as the settings.
func (p *Provider) ask(ctx context.Context) (endpoints, error) {
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	door := &door{base: p.round, every: p.header}
	client := &http.Client{
		Transport: door,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, client), p.config.BaseURL)
	// An issuer with a slash at its end (Auth0's) is the same address as without.
	if m, ok := errors.AsType[*oidc.IssuerMismatchError](err); ok &&
		strings.TrimRight(m.Discovered, "/") == p.config.BaseURL {
		provider, err = oidc.NewProvider(oidc.ClientContext(ctx, client), m.Discovered)
	}
	if err != nil {
		return endpoints{}, p.undiscovered(door, err)
	}
	var e endpoints
	malformed := func(err error) (endpoints, error) {
		return endpoints{},
			&grant.Fault{Class: grant.Config, Op: "discovery", Status: door.status, Err: err}
	}
	if err := provider.Claims(&e); err != nil {
		return malformed(errors.New("the OpenID configuration is malformed"))
	}
	if p.config.NoUserInfo {
		e.identities = p.identities(provider)
	}
	// only Revoke needs this address, so a wrong address is left out
	if p.config.checkURL(e.Revoke) != nil || p.config.RevokeURL != "" {
		e.Revoke = ""
	}
	unknown := func(err error) (endpoints, error) {
		return endpoints{},
			&grant.Fault{Class: grant.Unsent, Op: "discovery", Err: fmt.Errorf("compare the "+
				"OpenID configuration with the one before: %w", err)}
	}
	pinned, err := p.pinnedHosts(ctx)
	if err != nil {
		return unknown(err)
	}
	if err := p.believe(e, pinned); err != nil {
		return malformed(err)
	}
	if e.pinned, err = p.pin(ctx, e, pinned); err != nil {
		return unknown(err)
	}
	// another process pinned first, from another document
	if err := p.believe(e, e.pinned); err != nil {
		return malformed(err)
	}
	return e, nil
}

// believe returns why a document is refused: an endpoint that renewd will call is not allowed.
func (p *Provider) believe(e endpoints, pinned []string) error {
	type endpoint struct{ name, setting, raw, override string }
	wanted := []endpoint{
		{"token_endpoint", "token_url", e.Token, p.config.TokenURL},
		{"userinfo_endpoint", "userinfo_url", e.UserInfo, p.config.UserInfoURL},
	}
	if p.config.NoUserInfo {
		wanted[1] = endpoint{name: "jwks_uri", raw: e.Keys}
	}
	for _, u := range wanted {
		if u.override != "" {
			continue
		}
		err := p.config.checkURL(u.raw)
		if err == nil {
			err = p.admit(u.raw, pinned)
		}
		if err != nil {
			err = fmt.Errorf("the OpenID configuration's %s: %w", u.name, err)
			if u.setting != "" {
				err = fmt.Errorf("%w; %s can replace it", err, u.setting)
			}
			return err
		}
	}
	if e.Revoke == "" {
		return nil
	}
	if err := p.admit(e.Revoke, pinned); err != nil {
		return fmt.Errorf("the OpenID configuration's revocation_endpoint: %w", err)
	}
	return nil
}

// tell logs why a document leads elsewhere, the same reason once. The caller holds p.mu.
func (p *Provider) tell(err error) {
	moved, ok := errors.AsType[movedError](err)
	if !ok || p.log == nil || moved.text == p.refused {
		return
	}
	p.refused = moved.text
	p.log.Error("a provider's discovery document leads elsewhere, and is refused: no token "+
		"goes there", "provider", p.config.ID, "error", err)
}

// undiscovered is the fault for a missing document. A provider being down is not a fault of the
// settings.
func (p *Provider) undiscovered(d *door, err error) error {
	f := &grant.Fault{
		Class:      grant.Unsent,
		Op:         "discovery",
		Status:     d.status,
		RetryAfter: retryAfter(d.header, p.date(d.header)),
	}
	at := p.config.BaseURL + "/.well-known/openid-configuration"
	mismatch, mismatched := errors.AsType[*oidc.IssuerMismatchError](err)
	class, _ := Classify(Answer{Status: d.status}, nil)
	switch {
	case mismatched:
		f.Class = grant.Config
		f.Err = fmt.Errorf("%s is of the issuer %q: set auth_url to that, exactly, if it is the "+
			"one you mean", at, printable(mismatch.Discovered, 200))
	case d.status == 0:
		f.Err = fmt.Errorf("no answer from %s: %w", at, quiet(err))
	case class == grant.Config, class == grant.Throttled:
		f.Class = class
		f.Err = fmt.Errorf("no OpenID configuration at %s: is auth_url the issuer, exactly?", at)
	default:
		// go-oidc quotes the body of a rejected answer
		f.Err = fmt.Errorf("no OpenID configuration at %s", at)
	}
	return f
}

// door stands between go-oidc and the network, because go-oidc reads a body of any length and puts
// the status into a text.
type door struct {
	base   http.RoundTripper
	every  http.Header // of every call
	status int         // of the last answer
	header http.Header
	away   *atomic.Bool // the last request failed or brought no 200; nil: not recorded
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
