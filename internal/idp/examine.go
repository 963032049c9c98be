package idp

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// Examination is what can be seen of a provider without any token.
type Examination struct {
	Token    string `json:"token_endpoint"`
	UserInfo string `json:"userinfo_endpoint,omitempty"`
	Revoke   string `json:"revocation_endpoint,omitempty"`
	// Ways are the ways of client authentication that its discovery document offers; none if it has
	// no such document, or does not say.
	Ways []string `json:"token_endpoint_auth_methods,omitempty"`
	// First is the way that renewd tries first.
	First ClientAuth `json:"first_way"`
	// Protocol is that of its token endpoint, HTTP/2.0 for instance, and TLS the version below it;
	// empty: plain HTTP.
	Protocol string `json:"protocol"`
	TLS      string `json:"tls,omitempty"`
	// Until is when the certificate of its token endpoint expires.
	Until time.Time `json:"certificate_until,omitzero"`
	// Ahead is by how much its clock is ahead of this machine's, to a second; Dated whether it says.
	Ahead time.Duration `json:"clock_ahead_ns"`
	Dated bool          `json:"dated"`
}

// Examine asks for the discovery document, if the endpoints are not in the settings, and knocks at
// the token endpoint, with neither credentials nor tokens. Its error is a *grant.Fault.
func (p *Provider) Examine(ctx context.Context) (Examination, error) {
	e, err := p.discover(ctx)
	if err != nil {
		return Examination{}, err
	}
	x := Examination{Token: e.Token, UserInfo: e.UserInfo, Revoke: e.Revoke, Ways: e.Auth, First: p.config.credentials(p.firstWay, e.Auth)[0].way}
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

// Way is the way of client authentication of the last call to the token endpoint that was not refused
// for it; AuthAuto if there was none.
func (p *Provider) Way() ClientAuth {
	p.credentials.mu.Lock()
	defer p.credentials.mu.Unlock()
	return p.credentials.last
}

// Whoami is UserInfo for whoever the access token is of, whose id it returns with the profile.
func (p *Provider) Whoami(ctx context.Context, access grant.Secret) (user string, _ schema.Profile, _ error) {
	return p.userInfo(ctx, access, func(string) bool { return true })
}
