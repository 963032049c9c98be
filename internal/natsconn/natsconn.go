package natsconn

import (
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/stream"
)

const (
	DefaultURL        = "nats://127.0.0.1:4222"
	natsDialLimit     = 5 * time.Second
	natsReconnectWait = 500 * time.Millisecond
	// A server that hangs keeps its connections open. Without these pings a client would not notice
	// for minutes.
	natsPing = 5 * time.Second
)

// Options are the options and addresses to connect to the settings' NATS servers.
func Options(c *settings.Settings, environ []string) (url string, opts []nats.Option, err error) {
	url = c.NATSURL
	opts = append(stream.ConnectOptions(), nats.Name("renewd"), nats.Timeout(natsDialLimit),
		nats.MaxReconnects(-1), nats.ReconnectWait(natsReconnectWait),
		nats.PingInterval(natsPing), nats.MaxPingsOutstanding(2))
	if c.NATSContext != "" {
		from, err := readContext(c.NATSContext, environ)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", c.Name("nats_context"), err)
		}
		if host := settings.NATSInClear(
			from.URL, from.Password != "" || from.Token != "",
			from.CA != "" || from.Cert != "" || from.TLSFirst,
		); host != "" && !c.AllowPlaintext {
			return "", nil, fmt.Errorf("%s: its password or token would cross the network to %s "+
				"in clear text: write tls:// there%s", c.Name("nats_context"), host,
				settings.PlaintextHint)
		}
		url, opts = from.URL, append(opts, from.options()...)
	}
	own := cliContext{
		Token:       c.NATSToken.Reveal(),
		User:        c.NATSUser,
		Password:    c.NATSPassword.Reveal(),
		Creds:       c.NATSCreds,
		NKey:        c.NATSNKey,
		CA:          c.NATSCA,
		InboxPrefix: c.NATSInbox,
		Cert:        c.NATSCert,
		Key:         c.NATSKey,
	}
	return url, append(opts, own.options()...), nil
}

// ShowsSecret reports whether a client with these options shows a password or token, from the
// settings or from a NATS context.
func ShowsSecret(opts []nats.Option) bool {
	o := applied(opts)
	return o.Password != "" || o.Token != ""
}

// InsistsOnTLS reports whether a client with these options insists on TLS.
func InsistsOnTLS(opts []nats.Option) bool {
	o := applied(opts)
	return o.Secure || o.TLSConfig != nil || o.RootCAsCB != nil || o.TLSCertCB != nil ||
		o.TLSHandshakeFirst
}

func applied(opts []nats.Option) (o nats.Options) {
	for _, set := range opts {
		_ = set(&o) // Connect names the fault
	}
	return o
}

// options are x's options of a connection. Files are read when the connection is made, and again on
// each reconnect.
func (x cliContext) options() []nats.Option {
	var opts []nats.Option
	add := func(set bool, o func() nats.Option) {
		if set {
			opts = append(opts, o())
		}
	}
	add(x.Token != "", func() nats.Option { return nats.Token(x.Token) })
	add(x.User != "", func() nats.Option { return nats.UserInfo(x.User, x.Password) })
	add(x.Creds != "", func() nats.Option { return nats.UserCredentials(x.Creds) })
	add(x.CA != "", func() nats.Option { return nats.RootCAs(x.CA) })
	add(x.Cert != "", func() nats.Option { return nats.ClientCert(x.Cert, x.Key) })
	add(x.NKey != "", func() nats.Option {
		return func(o *nats.Options) error {
			nkey, err := nats.NkeyOptionFromSeed(x.NKey)
			if err != nil {
				return err
			}
			return nkey(o)
		}
	})
	add(x.InboxPrefix != "", func() nats.Option { return nats.CustomInboxPrefix(x.InboxPrefix) })
	add(x.TLSFirst, func() nats.Option {
		return func(o *nats.Options) error {
			return errors.Join(nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})(o),
				nats.TLSHandshakeFirst()(o))
		}
	})
	return opts
}
