package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/natsconn"
	"github.com/renewd/renewd/internal/settings"
)

// dialLimit bounds a command's questions to NATS before its work.
const dialLimit = 5 * time.Second

// connect opens a connection for a command that publishes or reads: to the NATS of the settings, or
// where renewd dev listens.
func (a *app) connect(conf *settings.Settings, server string) (*nats.Conn, error) {
	url, opts, err := natsconn.Options(conf, a.environ)
	if err != nil {
		return nil, settings.Mistake(err)
	}
	switch {
	case server != "":
		if err := settings.CheckNATSURL(server); err != nil {
			return nil, settings.Mistake(fmt.Errorf("--server: %w", err))
		}
		host := settings.NATSInClear(server, natsconn.ShowsSecret(opts),
			natsconn.InsistsOnTLS(opts))
		if host != "" && !conf.AllowPlaintext {
			return nil, settings.Mistake(fmt.Errorf("--server: the password or token would cross "+
				"the network to %s in clear text: write tls://%s%s", host, host,
				settings.PlaintextHint))
		}
		if strings.Contains(server, "@") {
			fmt.Fprintf(a.stderr,
				"%s: others on this machine can see a password in --server: "+
					"set RENEWD_NATS_PASSWORD or RENEWD_NATS_TOKEN\n",
				a.name)
		}
		url = server
	case url == "" && conf.NATSListen != "":
		url = "nats://" + reachable(conf.NATSListen)
	case url == "":
		url = natsconn.DefaultURL
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w: is it running? "+
			"Set RENEWD_NATS_URL or --server to another, or try it with: %s dev",
			settings.HostOf(url), err, a.name)
	}
	return nc, nil
}

// bucketHint is streamHint, and adds the next step where the bucket is missing that streams apply
// makes once the settings have a source, or a sink.
func bucketHint(err error, a *app, what string) error {
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("%w: there was no %s yet when the streams were applied: %s streams apply",
			err, what, a.name)
	}
	return streamHint(err, a)
}

// streamHint adds the next step to an error about a missing stream.
func streamHint(err error, a *app) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: this NATS server has no streams of renewd (yet): "+
			"%s streams apply, or start renewd; with a prefix set RENEWD_NATS_PREFIX", err, a.name)
	}
	return err
}
