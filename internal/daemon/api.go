package daemon

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// tokenSource hands out access tokens. The caller closes the source.
func (p *Resources) tokenSource() (*tokens.Source, error) {
	policies := map[string]grant.Policy{}
	for _, provider := range p.Conf.Providers {
		policies[provider.ID] = provider.GrantPolicy()
	}
	c := tokens.Config{
		Store: p.Store, Save: p.Store.Save, Policies: policies, Providers: p.Conf.ProviderIDs(),
		Now: p.Engine.Now, Logger: p.log, Meter: p.tel.meter,
		Asker: tokens.NATS{Conn: p.NC, Subjects: p.Conf.Subjects(), Request: p.Engine.Request},
	}
	if p.Conf.TokenAudit {
		c.Tell = p.tellRead
	}
	return tokens.New(c)
}

// tellRead publishes token.read. Several workers may publish the same reading: its id is the same.
func (p *Resources) tellRead(ctx context.Context, f tokens.FirstRead) error {
	data, err := json.Marshal(schema.Reading{
		Reader: f.Reader, Door: string(f.Door), Version: f.Version, ExpiresAt: f.ExpiresAt.UTC(),
	})
	if err != nil {
		panic("daemon: encode a reading: " + err.Error()) // a struct of this module: cannot happen
	}
	return p.Engine.Publish(ctx, schema.Event{
		ID: f.ID(), Source: Source, Type: schema.TokenRead, Provider: f.Provider, User: f.User,
		Time: f.At.UTC(), Data: data,
	})
}

// api makes the HTTP interface for services, and returns the services that run beside the requests.
func (p *Resources) api(source *tokens.Source) (http.Handler, []Service, error) {
	door, err := p.hooks()
	if err != nil {
		return nil, nil, err
	}
	subjects := p.Conf.Subjects()
	outcomes := subjects.Name(topology.Outcomes)
	standing, err := p.Conf.Clients()
	if err != nil {
		return nil, nil, settings.Mistake(err)
	}
	known := clients.Fixed(standing)
	log := api.NewLog(p.JS, subjects, outcomes, p.log)
	nats := api.NewNATS(p.NC, subjects, p.Engine.Now)
	mux := http.NewServeMux()
	c := api.Config{
		Clients: known, Tokens: source, Commands: nats, Outcomes: nats, Store: p.Store, Log: log,
		Known:       func(id string) bool { _, ok := p.Conf.Provider(id); return ok },
		LastOutcome: p.Engine.LastOutcome,
		InClear:     p.Conf.HTTPInClear() && !p.Conf.AllowPlaintext,
		Version:     p.version, Logger: p.log, Meter: p.tel.meter,
	}
	if p.erase != nil {
		c.Forget = func(ctx context.Context, k grant.Key, client string) error {
			return p.erase(ctx, k, api.SourceOf(client))
		}
	}
	beside := []Service{
		func(ctx context.Context) error { log.Run(ctx); return nil },
	}
	if len(standing) == 0 {
		beside = append(beside, func(ctx context.Context) error {
			known.Watch(ctx, p.JS, subjects.Name(topology.BucketClients), func() {}, p.log)
			return nil
		})
	}
	if door != nil {
		c.Hooks, beside = door, append(beside, door.Run)
	}
	api.New(mux, c)
	return mux, beside, nil
}
