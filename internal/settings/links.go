package settings

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/renewd/renewd/internal/source/hook"
)

// Everybody on a network can read clear text, such as a password of NATS or PostgreSQL, or the
// token of the HTTP server. Beyond loopback each link needs TLS, or the operator's word
// (allow_plaintext) that the network itself is encrypted.

// checkLinks lists the links that would show a secret, by setting.
func (c *Settings) checkLinks(say func(key string, err error)) {
	if c.AllowPlaintext {
		return
	}
	for key, why := range c.LinksInClear() {
		say(key, errors.New(why))
	}
}

const PlaintextHint = ", or set RENEWD_ALLOW_PLAINTEXT=true if the network itself is " +
	"encrypted or is one machine's"

// LinksInClear lists the links that would show a secret, by setting, each with the secret and the
// remedy.
func (c *Settings) LinksInClear() map[string]string {
	found := map[string]string{}
	if host := c.natsInClear(c.NATSURL); host != "" {
		found["nats_url"] = fmt.Sprintf("the password or token would cross the network to %s in "+
			"clear text: write tls://%s%s", host, host, PlaintextHint)
	}
	if c.NATSListen != "" && !Loopback(c.NATSListen) && c.NATSCert == "" {
		found["nats_listen"] = fmt.Sprintf("services would show their password to the network of "+
			"%s: set nats_cert and nats_key%s", c.NATSListen, PlaintextHint)
	}
	if host := DatabaseInClear(c.DatabaseURL.Reveal()); host != "" {
		found["database_url"] = fmt.Sprintf("the password, and every profile, may cross the "+
			"network to %s in clear text: add sslmode=verify-full%s", host, PlaintextHint)
	}
	if what := c.secretOverHTTP(); what != "" && c.HTTPInClear() {
		found["http_addr"] = fmt.Sprintf("%s would cross the network of %s in clear "+
			"text: set http_cert and http_key%s", what, c.HTTPAddr, PlaintextHint)
	}
	for name, sink := range c.Sinks {
		if setting, host := sink.inClear(); host != "" {
			found["sinks."+name+"."+setting] = fmt.Sprintf("the password, and what is written, "+
				"may cross the network to %s in clear text: add sslmode=verify-full, or tls=true, "+
				"or write rediss://%s", host, PlaintextHint)
		}
	}
	for name, of := range c.Sources {
		if host := of.inClear(); host != "" {
			found["sources."+name+".database_url"] = fmt.Sprintf("the password, and the tokens "+
				"of users, may cross the network to %s in clear text: add sslmode=verify-full, "+
				"or tls=true%s", host, PlaintextHint)
		}
	}
	return found
}

// HTTPInClear reports whether what is sent to http_addr crosses a network without TLS.
func (c *Settings) HTTPInClear() bool { return !Loopback(c.HTTPAddr) && c.HTTPCert == "" }

// secretOverHTTP is what the settings let a caller of http_addr send; empty: no secret. Clients in
// the bucket are not in the settings, and are refused in clear text when they come.
func (c *Settings) secretOverHTTP() string {
	switch {
	case !c.HTTPToken.IsZero():
		return "http_token"
	case len(c.HTTPClients) > 0:
		return "the secrets of http_clients, and access tokens,"
	}
	for name, of := range c.Sources {
		if of.Kind == string(hook.SET) && !of.Secret.IsZero() { // the others sign their messages
			return "the bearer token of sources." + name
		}
	}
	return ""
}

// natsInClear is NATSInClear with the credentials of the settings.
func (c *Settings) natsInClear(servers string) string {
	return NATSInClear(servers, !c.NATSPassword.IsZero() || !c.NATSToken.IsZero(),
		c.NATSCA != "" || c.NATSCert != "")
}

// NATSInClear is the first server that would get a password or token without TLS. secret: there is
// a password or token beside the addresses. secure: the settings ask for TLS in any case.
func NATSInClear(servers string, secret, secure bool) string {
	for part := range strings.SplitSeq(servers, ",") {
		part = strings.TrimSpace(part)
		if !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Host == "" || secure && u.Scheme == "nats" || u.Scheme == "tls" ||
			u.Scheme == "wss" {
			continue
		}
		if (secret || u.User != nil) && !Loopback(net.JoinHostPort(u.Hostname(), "0")) {
			return u.Host
		}
	}
	return ""
}

// DatabaseInClear is the first server of a PostgreSQL address that may get the password without
// TLS.
func DatabaseInClear(text string) string {
	config, err := pgxpool.ParseConfig(text)
	if text == "" || err != nil || config.ConnConfig.Password == "" {
		return ""
	}
	c := config.ConnConfig
	if c.TLSConfig == nil && !local(c.Host) {
		return c.Host
	}
	for _, f := range c.Fallbacks {
		if f.TLSConfig == nil && !local(f.Host) {
			return f.Host
		}
	}
	return ""
}

// local reports whether a host of PostgreSQL is this machine: a socket's folder, or loopback.
func local(host string) bool {
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") ||
		Loopback(net.JoinHostPort(host, "0"))
}
