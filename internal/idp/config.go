package idp

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/grant"
)

// ClientAuth is how renewd names itself to a token endpoint (RFC 6749 section 2.3).
type ClientAuth string

// The ways. AuthAuto is AuthPost with a secret, else AuthNone.
const (
	AuthAuto  ClientAuth = ""
	AuthNone  ClientAuth = "none"  // client_id in the form
	AuthPost  ClientAuth = "post"  // client_id and client_secret in the form
	AuthBasic ClientAuth = "basic" // both in the Authorization header
)

// Config is one provider's settings. Zero fields take the preset's value.
type Config struct {
	ID     string // renewd's id of the provider
	Preset string // see Presets; default "propelauth"

	// BaseURL is PropelAuth's auth URL, or the issuer of any other provider.
	BaseURL string
	// TokenURL and UserInfoURL override what the preset or discovery says.
	TokenURL, UserInfoURL string

	ClientID     string
	ClientSecret grant.Secret
	ClientAuth   ClientAuth

	// Timeout of a call, the provider's own included. Default 20 s.
	Timeout time.Duration
	// AllowHTTPLoopback allows plain http to 127.0.0.0/8, ::1 and localhost; anything else is https, always verified.
	AllowHTTPLoopback bool
	// RootCAs are trusted in place of the system's.
	RootCAs *x509.CertPool
	// MaxConns is how many connections are kept, for as many calls at a time. Default 64.
	MaxConns int
	// Rules move answers to another class, before the table is asked.
	Rules []Rule
}

// Preset is what is known about a kind of provider.
type Preset struct {
	// TokenPath and UserInfoPath are fixed; empty: OpenID Connect Discovery is asked.
	TokenPath, UserInfoPath string
	Rules                   []Rule
}

// Presets are the kinds of providers, by name. See the providers' own documentation for the figures.
func Presets() map[string]Preset {
	return map[string]Preset{
		"propelauth": {TokenPath: "/propelauth/oauth/token", UserInfoPath: "/propelauth/oauth/userinfo"},
		"oidc":       {},
		"auth0":      {},
		"okta":       {},
		"entra":      {},
		"google":     {},
		"keycloak":   {},
		"cognito":    {},
		"github": {
			TokenPath: "/login/oauth/access_token", UserInfoPath: "/user",
			Rules: []Rule{{Status: 200, Code: "bad_verification_code", Class: grant.Config}},
		},
	}
}

// withDefaults returns c with its zero fields filled in.
func (c Config) withDefaults() Config {
	if c.Preset == "" {
		c.Preset = "propelauth"
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	if c.MaxConns == 0 {
		c.MaxConns = 64
	}
	if c.ClientAuth == AuthAuto {
		c.ClientAuth = AuthNone
		if !c.ClientSecret.IsZero() {
			c.ClientAuth = AuthPost
		}
	}
	c.BaseURL = strings.TrimRight(c.BaseURL, "/")
	return c
}

// Validate names the first field that makes no sense, and what to do.
func (c Config) Validate() error {
	c = c.withDefaults()
	_, ok := Presets()[c.Preset]
	switch {
	case !ok:
		return fmt.Errorf("preset: %q: not known; \"oidc\" fits any OpenID Connect provider", c.Preset)
	case c.BaseURL == "" && (c.TokenURL == "" || c.UserInfoURL == ""):
		return fmt.Errorf("auth_url: missing: the provider's address, https://auth.example.com for instance")
	case c.ClientID == "":
		return fmt.Errorf("client_id: missing: copy it from the provider's dashboard")
	case c.ClientAuth != AuthNone && c.ClientAuth != AuthPost && c.ClientAuth != AuthBasic:
		return fmt.Errorf("client_auth: %q: want none, post or basic", c.ClientAuth)
	case c.ClientAuth == AuthNone && !c.ClientSecret.IsZero():
		return fmt.Errorf("client_auth: none, but a client_secret is set: drop one of them")
	case c.ClientAuth != AuthNone && c.ClientSecret.IsZero():
		return fmt.Errorf("client_secret: missing: client_auth %s needs it", c.ClientAuth)
	case c.Timeout < 0 || c.Timeout > 5*time.Minute:
		return fmt.Errorf("timeout: %v: want up to 5m", c.Timeout)
	case c.MaxConns < 1 || c.MaxConns > 10_000:
		return fmt.Errorf("concurrency: %d: want 1 to 10000", c.MaxConns)
	}
	for field, raw := range map[string]string{"auth_url": c.BaseURL, "token_url": c.TokenURL, "userinfo_url": c.UserInfoURL} {
		if raw == "" {
			continue
		}
		if err := c.checkURL(raw); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
	}
	return nil
}

// checkURL lets https through, and plain http to loopback where that is allowed.
func (c Config) checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%q: want an absolute URL", raw)
	}
	switch {
	case u.User != nil:
		return fmt.Errorf("leave user and password out of the URL: use client_id and client_secret")
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fmt.Errorf("%q: want https", raw)
	case !loopback(u.Hostname()):
		return fmt.Errorf("%q: want https: tokens never travel in the clear", raw)
	case !c.AllowHTTPLoopback:
		return fmt.Errorf("%q: plain http, though only to this machine: set allow_http_loopback (RENEWD_ALLOW_HTTP_LOOPBACK=true) if you mean it", raw)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
