package idp

import (
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/renewd/renewd/internal/secret"
)

// Config is one provider's settings. Zero fields take the preset's value.
type Config struct {
	ID     string // renewd's id of the provider, for errors
	Preset string // see Presets; default "propelauth"

	// BaseURL is PropelAuth's auth URL, or the issuer of any other provider.
	BaseURL string
	// TokenURL, UserInfoURL and RevokeURL override the addresses of the preset or of discovery. No
	// preset knows a RevokeURL. Without a RevokeURL and without discovery no token is revoked (RFC
	// 7009).
	TokenURL, UserInfoURL, RevokeURL string

	// EndpointHosts are the hosts that the discovery document may name beside the issuer's own,
	// each with its port unless 443. Empty: the preset's hosts, and without such hosts the hosts of
	// the first document read.
	EndpointHosts []string

	// NoUserInfo: the provider has no userinfo endpoint. The profile is in the ID token, see
	// Identify. Discovery says where the keys are that sign the ID token.
	NoUserInfo bool

	ClientID     string
	ClientSecret secret.Value
	// NextSecret is tried if ClientSecret is refused, and ClientSecret if NextSecret is. Set both
	// while the provider changes secrets.
	NextSecret secret.Value
	// ClientKey is a private key in place of a secret, in PEM or as a JSON Web Key. ClientKeyID is
	// the key's id at the provider. See AuthPrivateKey.
	ClientKey   secret.Value
	ClientKeyID string
	ClientAuth  ClientAuth
	// Scope is sent with each refresh. Empty: no scope is sent, and the grant keeps its scope (RFC
	// 6749 section 6).
	Scope string
	// Params are sent with each refresh beside the standard parameters: audience or resource (RFC
	// 8707), for instance.
	Params url.Values
	// Headers are sent with each call, to all endpoints, discovery included.
	Headers map[string]secret.Value
	// Subject is the member of the profile that names the user; empty: the preset's.
	Subject string

	// Profile says where members of the profile are in a userinfo, if not at their usual place:
	// JSON pointers (RFC 6901) by the member's name in schema.Profile. These pointers go before the
	// preset's.
	Profile map[string]string

	// Timeout of a call, from the first byte to the last. Make it longer than the provider's own
	// timeout. Default 20 s, up to 5 min.
	Timeout time.Duration
	// AllowHTTPLoopback allows plain http to 127.0.0.0/8, ::1 and localhost. Every other address
	// needs https, always verified.
	AllowHTTPLoopback bool
	// RootCAs are trusted in place of the system's.
	RootCAs *x509.CertPool
	// ProxyURL is an HTTP proxy for all calls; zero: no proxy, whatever the environment says.
	ProxyURL secret.Value
	// MaxConns is how many connections are kept open, for as many calls at a time. Default 64, 1 to
	// 10,000.
	MaxConns int
	// Rules move answers to another class, and come before the preset's rules.
	Rules []Rule
}

// withDefaults returns c with its zero fields filled in, and its preset.
func (c Config) withDefaults() (Config, Preset) {
	if c.Preset == "" {
		c.Preset = "propelauth"
	}
	preset := Presets()[c.Preset]
	if c.BaseURL == "" {
		c.BaseURL = preset.BaseURL
	}
	if c.Subject == "" {
		c.Subject = preset.Subject
	}
	if c.Subject == "" {
		c.Subject = "sub"
	}
	if c.Timeout == 0 {
		c.Timeout = 20 * time.Second
	}
	if c.MaxConns == 0 {
		c.MaxConns = 64
	}
	switch {
	case c.ClientAuth != AuthAuto:
	case !c.ClientKey.IsZero():
		c.ClientAuth = AuthPrivateKey
	case c.ClientSecret.IsZero():
		c.ClientAuth = AuthNone
	}
	c.BaseURL = strings.TrimRight(c.BaseURL, "/")
	return c, preset
}

// Validate returns an error for the first wrong field, with advice.
func (c Config) Validate() error {
	given := c.Preset
	c, _ = c.withDefaults()
	_, known := Presets()[c.Preset]
	switch {
	case slices.Contains(ordinary, given):
		return fmt.Errorf("preset: %q: say oidc, which fits it as it is; docs/providers/%s.md "+
			"says what to switch on there", given, given)
	case !known:
		return fmt.Errorf("preset: %q: not known; want one of %s (oidc fits any OpenID Connect "+
			"provider)", given,
			strings.Join(slices.Sorted(maps.Keys(Presets())), ", "))
	case c.NoUserInfo && c.UserInfoURL != "":
		return errors.New("userinfo: none, but userinfo_url is set: drop one of them")
	case c.BaseURL == "" && (c.TokenURL == "" || c.UserInfoURL == ""):
		return errors.New("auth_url: missing: the provider's address, https://auth.example.com " +
			"for instance")
	case c.ClientID == "":
		return errors.New("client_id: missing: copy it from the provider's dashboard")
	case !slices.Contains([]ClientAuth{AuthAuto, AuthNone, AuthPost, AuthBasic, AuthPrivateKey},
		c.ClientAuth):
		return fmt.Errorf("client_auth: %q: want none, post, basic or private_key_jwt",
			c.ClientAuth)
	case (c.ClientAuth == AuthPrivateKey) != !c.ClientKey.IsZero():
		return fmt.Errorf("client_key: client_auth private_key_jwt needs it, and nothing else "+
			"does: client_auth is %q", c.ClientAuth)
	case c.ClientAuth == AuthPrivateKey && !c.ClientSecret.IsZero():
		return errors.New("client_secret: a client_key is set: drop one of them")
	case c.ClientKeyID != "" && c.ClientKey.IsZero():
		return errors.New("client_key_id: set, but no client_key")
	case c.ClientAuth == AuthNone && !c.ClientSecret.IsZero():
		return errors.New("client_auth: none, but a client_secret is set: drop one of them")
	case c.ClientAuth != AuthNone && c.ClientAuth != AuthPrivateKey && c.ClientSecret.IsZero():
		return fmt.Errorf("client_secret: missing: client_auth %s needs it", c.ClientAuth)
	case !c.NextSecret.IsZero() && (c.ClientSecret.IsZero() || c.NextSecret.Equal(c.ClientSecret)):
		return errors.New("client_secret_next: want a secret that takes the place of " +
			"client_secret, and both while they change")
	case c.Timeout < 0 || c.Timeout > 5*time.Minute:
		return fmt.Errorf("timeout: %v: want up to 5m", c.Timeout)
	case c.MaxConns < 1 || c.MaxConns > 10_000:
		return fmt.Errorf("concurrency: %d: want 1 to 10000", c.MaxConns)
	}
	if c.ClientAuth == AuthPrivateKey {
		if _, err := newAsserter(c.ClientID, c.ClientKey.Reveal(), c.ClientKeyID); err != nil {
			return fmt.Errorf("client_key: %w", err)
		}
	}
	for i, r := range c.Rules {
		if err := r.validate(); err != nil {
			return fmt.Errorf("rules[%d]: %w", i, err)
		}
	}
	if err := c.validateExtras(); err != nil {
		return err
	}
	if err := checkMapping(c.Profile); err != nil {
		return err
	}
	if err := c.checkHosts(); err != nil {
		return err
	}
	return c.validateURLs()
}

// reservedParams and reservedHeaders must not be set from outside. They name the client and its
// request, or frame the message. An idempotency key is reserved because net/http sends a request
// with such a header again by itself.
var (
	reservedParams = []string{
		"grant_type", "refresh_token", "client_id", "client_secret", "client_assertion",
		"client_assertion_type",
	}
	reservedHeaders = []string{
		"Authorization", "Proxy-Authorization", "Host", "Content-Type", "Content-Length",
		"Content-Encoding", "Transfer-Encoding", "Connection",
		"Expect", "Te", "Trailer", "Upgrade", "Idempotency-Key", "X-Idempotency-Key",
	}
)

func (c Config) validateExtras() error {
	for name := range c.Params {
		switch {
		case name == "":
			return errors.New("params: a parameter without a name")
		case name == "scope":
			return errors.New("params.scope: set scope")
		case slices.Contains(reservedParams, name):
			return fmt.Errorf("params.%s: is renewd's own", name)
		}
	}
	for name, value := range c.Headers {
		switch {
		case name == "":
			return errors.New("headers: a header without a name")
		case strings.Trim(name,
			"-0123456789_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "":
			return fmt.Errorf("headers: %q: want a name of letters, digits, - and _", name)
		case slices.Contains(reservedHeaders, http.CanonicalHeaderKey(name)):
			return fmt.Errorf("headers.%s: is renewd's own", name)
		case value.IsZero() || strings.ContainsFunc(value.Reveal(), unicode.IsControl):
			return fmt.Errorf("headers.%s: want a text without control characters", name)
		}
	}
	return nil
}

func (c Config) validateURLs() error {
	for _, u := range []struct{ field, raw string }{
		{"auth_url", c.BaseURL},
		{"token_url", c.TokenURL},
		{"userinfo_url", c.UserInfoURL},
		{"revoke_url", c.RevokeURL},
	} {
		if u.raw == "" {
			continue
		}
		if err := c.checkURL(u.raw); err != nil {
			return fmt.Errorf("%s: %w", u.field, err)
		}
	}
	if c.ProxyURL.IsZero() {
		return nil
	}
	// The error does not quote the proxy's address, which may hold a password.
	if u, err := url.Parse(c.ProxyURL.Reveal()); err != nil || u.Host == "" ||
		u.Scheme != "http" && u.Scheme != "https" {
		return errors.New("proxy_url: want http://host:port")
	}
	return nil
}

// checkURL allows https, and with AllowHTTPLoopback plain http to loopback.
func (c Config) checkURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return fmt.Errorf("%q: want an absolute URL", raw)
	}
	switch {
	case u.User != nil:
		return errors.New("leave user and password out of the URL: use client_id and client_secret")
	case u.Fragment != "":
		return fmt.Errorf("%q: leave out what follows #", raw)
	case u.Scheme == "https":
		return nil
	case u.Scheme != "http":
		return fmt.Errorf("%q: want https", raw)
	case !loopback(u.Hostname()):
		return fmt.Errorf("%q: want https: tokens never travel in the clear", raw)
	case !c.AllowHTTPLoopback:
		return fmt.Errorf("%q: plain http, though only to this machine: set allow_http_loopback "+
			"(RENEWD_ALLOW_HTTP_LOOPBACK=true) if you mean it", raw)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
