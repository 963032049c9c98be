package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// What crosses a network in clear text is read by everybody on it: a password of NATS or
// PostgreSQL, the token of the HTTP server. Beyond loopback each link needs TLS, or the operator's
// word (allow_plaintext) that the network itself is encrypted.

// checkLinks lists the links that would show a secret, by setting.
func (c *configuration) checkLinks(say func(key string, err error)) {
	if c.AllowPlaintext {
		return
	}
	for key, why := range c.linksInClear() {
		say(key, errors.New(why))
	}
}

const plaintextHint = ", or set RENEWD_ALLOW_PLAINTEXT=true if the network itself is encrypted or is one machine's"

// linksInClear says of each setting with such a link what would be shown, and what to do.
func (c *configuration) linksInClear() map[string]string {
	found := map[string]string{}
	if host := c.natsInClear(c.NATSURL); host != "" {
		found["nats_url"] = fmt.Sprintf("the password or token would cross the network to %s in clear text: write tls://%s%s", host, host, plaintextHint)
	}
	if c.NATSListen != "" && !loopback(c.NATSListen) && c.NATSCert == "" {
		found["nats_listen"] = fmt.Sprintf("services would show their password to the network of %s: set nats_cert and nats_key%s", c.NATSListen, plaintextHint)
	}
	if host := databaseInClear(c.DatabaseURL.Reveal()); host != "" {
		found["database_url"] = fmt.Sprintf("the password, and every profile, may cross the network to %s in clear text: add sslmode=verify-full%s", host, plaintextHint)
	}
	if !c.HTTPToken.IsZero() && !loopback(c.HTTPAddr) && c.HTTPCert == "" {
		found["http_addr"] = fmt.Sprintf("http_token would cross the network of %s in clear text: set http_cert and http_key%s", c.HTTPAddr, plaintextHint)
	}
	return found
}

// natsInClear is the package's natsInClear for the credentials of the settings.
func (c *configuration) natsInClear(servers string) string {
	return natsInClear(servers, !c.NATSPassword.IsZero() || !c.NATSToken.IsZero(), c.NATSCA != "" || c.NATSCert != "")
}

// natsInClear is the first of the servers that would get a password or token without TLS. secret:
// there is one beside those in the addresses. secure: the settings ask for TLS in any case.
func natsInClear(servers string, secret, secure bool) string {
	for part := range strings.SplitSeq(servers, ",") {
		part = strings.TrimSpace(part)
		if !strings.Contains(part, "://") {
			part = "nats://" + part
		}
		u, err := url.Parse(part)
		if err != nil || u.Host == "" || secure && u.Scheme == "nats" || u.Scheme == "tls" || u.Scheme == "wss" {
			continue
		}
		if (secret || u.User != nil) && !loopback(net.JoinHostPort(u.Hostname(), "0")) {
			return u.Host
		}
	}
	return ""
}

// databaseInClear is the first server of a PostgreSQL address that may be spoken to without TLS,
// where a password would be shown.
func databaseInClear(text string) string {
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
	return strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || loopback(net.JoinHostPort(host, "0"))
}

// links is the doctor's look at them.
func (x *examination) links(context.Context) finding {
	clear := x.plant.conf.linksInClear()
	if len(clear) == 0 {
		return finding{State: fine, Found: "no password or token crosses a network in clear text"}
	}
	var found []string
	for _, key := range slices.Sorted(maps.Keys(clear)) {
		what, _, _ := strings.Cut(clear[key], ": ")
		found = append(found, key+": "+what)
	}
	return finding{
		State: warning, Found: strings.Join(found, "; "),
		Advice: "allow_plaintext is set: is that network encrypted, or this machine's own? Else use TLS",
	}
}

// certificate is a pair of files that may change while renewd runs. Safe for concurrent use.
type certificate struct {
	cert, key string

	mu     sync.Mutex
	loaded *tls.Certificate
	at     [2]time.Time // the files' times when they were loaded
}

// loadCertificate reads the pair for the first time.
func loadCertificate(cert, key string) (*certificate, error) {
	c := &certificate{cert: cert, key: key}
	return c, c.load()
}

func (c *certificate) load() error {
	var at [2]time.Time
	for i, path := range []string{c.cert, c.key} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		at[i] = info.ModTime()
	}
	if c.loaded != nil && at == c.at {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return fmt.Errorf("%s: no certificate with the key of %s: %w", c.cert, c.key, err)
	}
	c.loaded, c.at = &pair, at
	return nil
}

// get is the certificate as the files have it now. While they cannot be read, or one was replaced
// and the other not yet, the one before serves on.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.load()
	return c.loaded, nil
}

// server is how a server shows the certificate.
func (c *certificate) server() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}
}
