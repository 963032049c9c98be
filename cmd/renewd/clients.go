package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// clientsCommand is about the services that use renewd over HTTP.
type clientsCommand struct {
	Add    clientsAdd    `cmd:"" help:"Make a client and print its secret, once."`
	List   clientsList   `cmd:"" help:"List the clients and what each may do."`
	Remove clientsRemove `cmd:"" help:"End a client: its secret is refused within moments."`
}

type clientsAdd struct {
	clientFlags
	operatorFlags
	Name     string   `arg:"" help:"The client's name: 1 to 32 of a-z, 0-9 and -."`
	May      []string `required:"" placeholder:"RIGHT,…" help:"What it may do: login, logout, refresh, read, token, admin."`
	Provider []string `placeholder:"ID" help:"Only for this provider; may be repeated. Without it for all."`
	Settings bool     `help:"Print an entry of http_clients for the settings file in place of storing the client in NATS."`
	Output   string   `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// clientShown is a client as printed.
type clientShown struct {
	Name      string          `json:"name"`
	May       []clients.Right `json:"may"`
	Providers []string        `json:"providers,omitempty"`
	CreatedAt time.Time       `json:"created_at,omitzero"`
	Secret    string          `json:"secret,omitempty"`
}

func shownClient(c clients.Client, secret string) clientShown {
	return clientShown{
		Name: c.Name, May: c.May, Providers: c.Providers, CreatedAt: c.CreatedAt, Secret: secret,
	}
}

// Run makes a client.
func (c clientsAdd) Run(ctx context.Context, a *app, main *cli) error {
	var may []clients.Right
	for _, r := range c.May {
		may = append(may, clients.Right(r))
	}
	made, secret, err := clients.New(c.Name, may, c.Provider, time.Now())
	if err != nil {
		return settings.Mistake(err)
	}
	conf, err := a.load(main)
	if err != nil {
		return err
	}
	for _, id := range c.Provider {
		if _, known := conf.Provider(id); !known {
			return settings.Mistake(
				fmt.Errorf("--provider %s: no such provider in the settings", id),
			)
		}
	}
	if c.Settings {
		return c.entry(a, made, secret)
	}
	if len(conf.HTTPClients) > 0 {
		return settings.Mistake(errors.New("the clients stand in the settings (http_clients): " +
			"say --settings, and add the entry that is printed"))
	}
	return a.withClients(ctx, conf, c.Server, func(kv jetstream.KeyValue) error {
		if err := c.record(ctx, a, conf, c.Server, schema.ActClientsAdd, c.Name); err != nil {
			return fmt.Errorf("add client: %w", err)
		}
		if err := clients.Add(ctx, kv, made); err != nil {
			if errors.Is(err, clients.ErrExists) {
				err = fmt.Errorf("%w: remove it first, its secret is not shown again", err)
			}
			return err
		}
		if c.Output == "json" {
			return json.NewEncoder(a.stdout).Encode(shownClient(made, secret))
		}
		fmt.Fprintln(a.stderr, "the secret is stored nowhere: keep it")
		_, err := fmt.Fprintln(a.stdout, secret)
		return err
	})
}

// entry prints what the settings file is to have of a client, and the secret on standard error.
func (c clientsAdd) entry(a *app, made clients.Client, secret string) error {
	if c.Output == "json" {
		return json.NewEncoder(a.stdout).Encode(struct {
			clientShown
			Digest string `json:"digest"`
		}{shownClient(made, secret), made.Digest()})
	}
	fmt.Fprintln(a.stderr, "the secret is stored nowhere: keep it")
	fmt.Fprintln(a.stderr, secret)
	fmt.Fprintf(a.stdout, "http_clients:\n  %s:\n    digest: %s\n    may: [%s]\n", made.Name,
		made.Digest(), join(made.May))
	if len(made.Providers) > 0 {
		fmt.Fprintf(a.stdout, "    providers: [%s]\n", strings.Join(made.Providers, ", "))
	}
	return nil
}

type clientsList struct {
	clientFlags
	Output string `short:"o" enum:"text,json" default:"text" help:"text or json."`
}

// Run lists the clients.
func (c clientsList) Run(ctx context.Context, a *app, main *cli) error {
	conf, err := a.load(main)
	if err != nil {
		return err
	}
	if len(conf.HTTPClients) > 0 {
		standing, err := conf.Clients()
		return errors.Join(err, c.print(a, standing))
	}
	return a.withClients(ctx, conf, c.Server, func(kv jetstream.KeyValue) error {
		all, unread := clients.List(ctx, kv)
		return errors.Join(unread, c.print(a, all))
	})
}

// print shows clients. The settings do not say since when there is one.
func (c clientsList) print(a *app, all []clients.Client) error {
	if c.Output == "json" {
		shown := []clientShown{}
		for _, x := range all {
			shown = append(shown, shownClient(x, ""))
		}
		return json.NewEncoder(a.stdout).Encode(shown)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tMAY\tPROVIDERS\tSINCE")
	for _, x := range all {
		providers := "all"
		if len(x.Providers) > 0 {
			providers = strings.Join(x.Providers, ",")
		}
		since := "settings"
		if !x.CreatedAt.IsZero() {
			since = x.CreatedAt.Format(time.DateOnly)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", x.Name, join(x.May), providers, since)
	}
	return w.Flush()
}

func join(may []clients.Right) string {
	var names []string
	for _, r := range may {
		names = append(names, string(r))
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

type clientsRemove struct {
	clientFlags
	operatorFlags
	Name string `arg:"" help:"The client's name."`
}

// Run ends a client.
func (c clientsRemove) Run(ctx context.Context, a *app, main *cli) error {
	conf, err := a.load(main)
	if err != nil {
		return err
	}
	if len(conf.HTTPClients) > 0 {
		return settings.Mistake(errors.New("the clients stand in the settings (http_clients): " +
			"take the entry out there, and restart the workers"))
	}
	return a.withClients(ctx, conf, c.Server, func(kv jetstream.KeyValue) error {
		if _, err := kv.Get(ctx, c.Name); errors.Is(err, jetstream.ErrKeyNotFound) {
			return fmt.Errorf("%s: %w", c.Name, clients.ErrNotFound)
		}
		if err := c.record(ctx, a, conf, c.Server, schema.ActClientsRemove, c.Name); err != nil {
			return fmt.Errorf("remove client: %w", err)
		}
		return clients.Remove(ctx, kv, c.Name)
	})
}

// withClients opens the bucket of the clients.
func (a *app) withClients(
	ctx context.Context,
	conf *settings.Settings,
	server string,
	do func(jetstream.KeyValue) error,
) error {
	js, done, err := a.jetStream(conf, server)
	if err != nil {
		return err
	}
	defer done()
	bucket := conf.Subjects().Name(topology.BucketClients)
	kv, err := js.KeyValue(ctx, bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return fmt.Errorf("there is no bucket %s: %s streams apply makes it", bucket, a.name)
	}
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", bucket, err)
	}
	return do(kv)
}
