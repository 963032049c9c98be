package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/stream"
)

const (
	natsDefault       = "nats://127.0.0.1:4222"
	natsDialLimit     = 5 * time.Second
	natsReconnectWait = 500 * time.Millisecond
	// A server that hangs keeps its connections open; nobody else would notice for minutes.
	natsPing = 5 * time.Second
)

// natsOptions is how to connect to the NATS servers of the settings, and their addresses.
func (c *configuration) natsOptions(environ []string) (url string, opts []nats.Option, err error) {
	url = c.NATSURL
	opts = append(stream.ConnectOptions(), nats.Name("renewd"), nats.Timeout(natsDialLimit), nats.MaxReconnects(-1), nats.ReconnectWait(natsReconnectWait),
		nats.PingInterval(natsPing), nats.MaxPingsOutstanding(2))
	if c.NATSContext != "" {
		from, err := readNATSContext(c.NATSContext, environ)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", c.name("nats_context"), err)
		}
		if host := natsInClear(from.URL, from.Password != "" || from.Token != "", from.CA != "" || from.Cert != "" || from.TLSFirst); host != "" && !c.AllowPlaintext {
			return "", nil, fmt.Errorf("%s: its password or token would cross the network to %s in clear text: write tls:// there%s", c.name("nats_context"), host, plaintextHint)
		}
		url, opts = from.URL, append(opts, from.options()...)
	}
	own := natsContext{
		Token: c.NATSToken.Reveal(), User: c.NATSUser, Password: c.NATSPassword.Reveal(), Creds: c.NATSCreds, NKey: c.NATSNKey, CA: c.NATSCA, InboxPrefix: c.NATSInbox,
		Cert: c.NATSCert, Key: c.NATSKey,
	}
	return url, append(opts, own.options()...), nil
}

// natsEvents has the connection's troubles logged, by host only.
func natsEvents(logger *slog.Logger) []nats.Option {
	return []nats.Option{
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if nc.IsClosed() || err == nil {
				return
			}
			logger.Warn("lost the connection to NATS; work waits until it is back", "error", err)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) { logger.Info("connected to NATS again", "server", nc.ConnectedAddr()) }),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			logger.Error("NATS refused something", "subject", subject, "error", err)
		}),
	}
}

// connect opens a connection for a command that publishes or reads: to the NATS of the settings, or
// where renewd dev listens.
func (a *app) connect(conf *configuration, server string) (*nats.Conn, error) {
	url, opts, err := conf.natsOptions(a.environ)
	if err != nil {
		return nil, usageError{err}
	}
	switch {
	case server != "":
		if err := checkNATSURL(server); err != nil {
			return nil, usageError{fmt.Errorf("--server: %w", err)}
		}
		if host := natsInClear(server, showsSecret(opts), insistsOnTLS(opts)); host != "" && !conf.AllowPlaintext {
			return nil, usageError{fmt.Errorf("--server: the password or token would cross the network to %s in clear text: write tls://%s%s", host, host, plaintextHint)}
		}
		if strings.Contains(server, "@") {
			fmt.Fprintf(a.stderr, "%s: others on this machine can see a password in --server: set RENEWD_NATS_PASSWORD or RENEWD_NATS_TOKEN\n", a.name)
		}
		url = server
	case url == "" && conf.NATSListen != "":
		url = "nats://" + reachable(conf.NATSListen)
	case url == "":
		url = natsDefault
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w: is it running? Set RENEWD_NATS_URL or --server to another, or try it with: %s dev", hostOf(url), err, a.name)
	}
	return nc, nil
}

// showsSecret reports whether a client with these options shows a password or token, wherever it is from: the
// settings, or a NATS context.
func showsSecret(opts []nats.Option) bool {
	o := applied(opts)
	return o.Password != "" || o.Token != ""
}

// insistsOnTLS reports whether such a client insists on TLS.
func insistsOnTLS(opts []nats.Option) bool {
	o := applied(opts)
	return o.Secure || o.TLSConfig != nil || o.RootCAsCB != nil || o.TLSCertCB != nil || o.TLSHandshakeFirst
}

func applied(opts []nats.Option) (o nats.Options) {
	for _, set := range opts {
		_ = set(&o) // Connect says what is wrong
	}
	return o
}

// patiently calls try until it succeeds, with a line in the log for each failure, for at most
// limit.
func patiently(ctx context.Context, logger *slog.Logger, limit time.Duration, what, settings string, try func(context.Context) error) error {
	deadline := time.Now().Add(limit)
	for wait := 250 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := try(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, ok := errors.AsType[usageError](err); ok {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%s: not reached within %s (start_timeout): start it, or correct %s: %w", what, formatDuration(limit), settings, err)
		}
		logger.Warn("waiting for "+what, "error", err, "setting", settings, "give_up_in", left.Round(time.Second).String())
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(min(wait, left)):
		}
	}
}

// options is what x says about how to connect. Files are read when the connection is made, and
// again when it is made anew.
func (x natsContext) options() []nats.Option {
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
			return errors.Join(nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12})(o), nats.TLSHandshakeFirst()(o))
		}
	})
	return opts
}

// streamHint adds the next step to an error about a stream that is not there.
func streamHint(err error, a *app) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: this NATS server has no streams of renewd (yet): %s streams apply, or start renewd; with a prefix set RENEWD_NATS_PREFIX", err, a.name)
	}
	return err
}
