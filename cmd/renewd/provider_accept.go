package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/schema"
)

type providerAccept struct {
	providerFlags
	operatorFlags
	Yes bool `help:"Do it. Without this flag the hosts are shown, and nothing is changed."`
}

// Run reads the provider's document, and pins the hosts in the document.
func (p providerAccept) Run(ctx context.Context, a *app, c *cli) error {
	h, id, err := p.open(ctx, a, c)
	if err != nil {
		return err
	}
	defer h.nc.Close()
	of, _ := h.conf.Provider(id)
	client, err := daemon.Bare(h.conf).Client(of) // compares with no pins
	if err != nil {
		return err
	}
	defer client.Close()
	named, err := client.Hosts(ctx)
	if err != nil {
		return fmt.Errorf("accept the hosts of %s: %w", id, err)
	}
	if named == nil {
		return settings.Mistake(fmt.Errorf("the settings of %s, or its preset, "+
			"name each host that may be called: there is nothing to accept; see endpoint_hosts",
			id))
	}
	pins := h.pins(of)
	before, err := pins.Pinned(ctx)
	if err != nil {
		return err
	}
	if slices.Equal(before, named) {
		_, err := fmt.Fprintf(a.stdout, "%s is at %s, as it was: nothing to do\n", id,
			hostList(named))
		return err
	}
	fmt.Fprintf(a.stdout, "%s was at: %s\nits document says: %s\n", id, hostList(before),
		hostList(named))
	if !p.Yes {
		return settings.Mistake(errors.New("refresh tokens are sent to the hosts that are " +
			"accepted: ask the provider whether it has moved, then add --yes"))
	}
	about := append([]string{id}, named...)
	err = p.record(ctx, a, h.conf, p.Server, schema.ActProviderAccept, about...)
	if err != nil {
		return fmt.Errorf("accept the hosts of %s: %w", id, err)
	}
	if err := pins.Replace(ctx, named); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout,
		"accepted: a worker that waits for it goes on with its next try, "+
			"and one that held on to the document before within an hour\n")
	return err
}

func (r *providerRecords) pins(of settings.Provider) health.Pins {
	open := func(context.Context) (jetstream.KeyValue, error) { return r.bucket, nil }
	return health.Pins{Provider: of.ID, Issuer: of.ClientConfig().Issuer(), Open: open}
}

// hostList are hosts as people write them.
func hostList(hosts []string) string {
	var all []string
	for _, host := range hosts {
		all = append(all, strings.TrimSuffix(host, ":443"))
	}
	if all == nil {
		return "-"
	}
	return strings.Join(all, ", ")
}
