package idp

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Examination holds the facts about a provider that renewd can see without a token.
type Examination struct {
	Token    string `json:"token_endpoint"`
	UserInfo string `json:"userinfo_endpoint,omitempty"`
	Revoke   string `json:"revocation_endpoint,omitempty"`
	// Ways are the ways of client authentication in the provider's discovery document. Empty: there
	// is no such document, or the document names no way.
	Ways []string `json:"token_endpoint_auth_methods,omitempty"`
	// First is the way renewd tries first.
	First ClientAuth `json:"first_way"`
	// Protocol is the protocol of the token endpoint, HTTP/2.0 for instance, and TLS the version of
	// TLS below. Empty TLS: plain HTTP.
	Protocol string `json:"protocol"`
	TLS      string `json:"tls,omitempty"`
	// Until is when the certificate of the token endpoint expires.
	Until time.Time `json:"certificate_until,omitzero"`
	// Ahead is how far the provider's clock is ahead of this machine's, to a second. Dated is
	// whether the provider tells its time.
	Ahead time.Duration `json:"clock_ahead_ns"`
	Dated bool          `json:"dated"`
}

// Examine asks for the discovery document, if the endpoints are not in the settings, and calls the
// token endpoint, with neither credentials nor tokens. Its error is a *grant.Fault.
func (p *Provider) Examine(ctx context.Context) (Examination, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return Examination{}, err
	}
	x := Examination{
		Token:    e.Token,
		UserInfo: e.UserInfo,
		Revoke:   e.Revoke,
		Ways:     e.Auth,
		First:    p.config.credentials(p.firstWay, e.Auth)[0].way,
	}
	if p.config.NoUserInfo {
		x.UserInfo = ""
	}
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.Token, nil)
	if err != nil {
		return x, &grant.Fault{Class: grant.Config, Op: "examine", Err: errors.New("malformed URL")}
	}
	req.Header = p.header.Clone()
	before := p.now()
	resp, err := p.round.RoundTrip(req)
	if err != nil {
		return x, &grant.Fault{Class: grant.Unsent, Op: "examine", Err: quiet(err)}
	}
	defer resp.Body.Close()
	x.Protocol = resp.Proto
	if s := resp.TLS; s != nil {
		x.TLS = tls.VersionName(s.Version)
		if len(s.PeerCertificates) > 0 {
			x.Until = s.PeerCertificates[0].NotAfter
		}
	}
	if at, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		middle := before.Add(p.now().Sub(before) / 2)
		x.Dated, x.Ahead = true, at.Sub(middle).Round(time.Second)
	}
	return x, nil
}

// Way is the way of client authentication in the last call to the token endpoint whose client was
// not refused; AuthAuto: no such call yet.
func (p *Provider) Way() ClientAuth {
	p.credentials.mu.Lock()
	defer p.credentials.mu.Unlock()
	return p.credentials.last
}

// Whoami is UserInfo for the user of the access token, and returns the user's id with the profile.
func (p *Provider) Whoami(
	ctx context.Context, access secret.Value,
) (user string, _ schema.Profile, _ error) {
	return p.userInfo(ctx, access, func(string) bool { return true })
}
