package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/consumers/login"
	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/consumers/request"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/guard"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/stream"
)

// source is the CloudEvents source of what renewd itself says.
const source = "/renewd"

// layers are the parts of the running program, what others stand on first.
func (p *plant) layers() ([][]part, error) {
	providers, guards, err := p.providers()
	if err != nil {
		return nil, err
	}
	runners, err := p.runners(providers)
	if err != nil {
		return nil, err
	}
	support := []part{
		p.engine.Run, p.announce, p.watchPublished,
		func(ctx context.Context) error {
			return p.keys.watch(ctx, p.log, p.publishKeys, p.engine.Retired)
		},
		stream.Reconciler{Store: p.store, Engine: p.engine, Meter: p.tel.meter, Logger: p.log}.Run,
		stream.Resealer{
			Store: p.store, Engine: p.engine, Old: p.keys.old, KeyOf: seal.StoreKeyOf,
			Meter: p.tel.meter, Logger: p.log,
		}.Run,
	}
	for _, g := range guards {
		support = append(support, g.Run)
	}
	ground := []part{atEnd(p.close)}
	if p.server != nil {
		ground = append(ground, p.watchServer)
	}
	return [][]part{ground, support, runners}, nil
}

// watchServer notices that the embedded server ended by itself. At the end close shuts it down,
// after the connection.
func (p *plant) watchServer(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if !p.server.Running() {
				return errors.New("the embedded NATS server ended by itself: its log above says why")
			}
		}
	}
}

// providers makes the clients of the settings' providers, and the guards that watch over them.
func (p *plant) providers() (map[string]refresh.Provider, []*guard.Guard, error) {
	providers := map[string]refresh.Provider{}
	var guards []*guard.Guard
	for _, s := range p.conf.Providers {
		client, err := p.client(s)
		if err != nil {
			return nil, nil, fmt.Errorf("provider %s: %w", s.ID, err)
		}
		g, err := guard.New(guard.Config{
			Provider: s.ID, Settings: client.Settings(), Rules: s.Guard.rules(),
			Concurrency: s.Concurrency, Bucket: p.health, Brake: p.engine, Wake: stream.Waker{Store: p.store, Engine: p.engine}.Wake, Source: source, Now: p.engine.Now, Logger: p.log,
		})
		if err != nil {
			return nil, nil, err
		}
		guards = append(guards, g)
		provider := refresh.Provider{Client: client, Policy: s.policy(), Guard: g, RevokeReplaced: s.RevokeReplaced}
		budget := guard.NewBudget(guard.BudgetConfig{Provider: s.ID, Rate: s.Rate, Bucket: p.health, Now: p.engine.Now})
		if budget != nil {
			provider.Limiter = budget
		}
		if s.Userinfo == "none" {
			provider.IDTokens = client
		}
		providers[s.ID] = provider
	}
	return providers, guards, nil
}

// runners are the consumers at work: logins, requests, and the due renewals of each provider.
func (p *plant) runners(providers map[string]refresh.Provider) ([]part, error) {
	logins, err := p.logins(providers)
	if err != nil {
		return nil, err
	}
	requests := &request.Consumer{
		Subjects: p.conf.subjects(), Stream: p.engine, Refuse: p.conf.senders().Refuse,
		Known: func(id string) bool { _, ok := providers[id]; return ok },
	}
	renewals, err := refresh.New(refresh.Config{
		Store: p.store, Stream: p.engine, Providers: providers, Subjects: p.conf.subjects(), Cipher: p.keys, Parse: p.engine.ParseWork, Source: source,
		MaxProfile: int(p.nc.MaxPayload() / 2), Rand: draw, Logger: p.log, Meter: p.tel.meter,
	})
	if err != nil {
		return nil, err
	}
	var parts []part
	add := func(base, durable, template string, slots int, handle consumers.Handler, putOff func(context.Context, *consumers.Message, error) error) error {
		r, err := consumers.NewRunner(consumers.Config{
			JetStream: p.js, Stream: p.conf.subjects().Name(base), Durable: durable, Template: template, Handler: handle, PutOff: putOff,
			Rejected: p.rejected, Ready: p.engine.Ready, Slots: slots, Drain: p.conf.DrainTimeout, Logger: p.log, Tracer: p.tel.tracer, Meter: p.tel.meter,
		})
		parts = append(parts, r.Run)
		return err
	}
	err = errors.Join(
		add(stream.Logins, stream.ConsumerLogin, "user.login", p.conf.Workers, logins.Handle, logins.PutOff),
		add(stream.Renewals, stream.ConsumerDeferred, "login.deferred", p.conf.Workers, logins.HandleDeferred, logins.PutOffDeferred),
		add(stream.Requests, stream.ConsumerRequest, "user.refresh_due", p.conf.Workers, requests.Handle, nil))
	for _, s := range p.conf.Providers {
		err = errors.Join(err, add(stream.Renewals, stream.ConsumerRenew(s.ID), "renewal.due", s.Concurrency, renewals.Handle, renewals.PutOff))
	}
	return parts, err
}

func (p *plant) logins(providers map[string]refresh.Provider) (*login.Consumer, error) {
	policies := map[string]grant.Policy{}
	for id, provider := range providers {
		policies[id] = provider.Policy
	}
	return login.New(login.Config{
		Subjects: p.conf.subjects(), Store: p.store, Stream: p.engine, Policies: policies,
		Refuse: p.conf.senders().Refuse, Open: p.openLogin,
		KeyMissing: func(err error) bool { return errors.Is(err, seal.ErrUnknownKey) }, MaxSealAge: p.conf.LoginMaxAge,
		Now: p.engine.Now, Rand: draw, Logger: p.log,
	})
}

func (p *plant) openLogin(jwe string) (login.Opened, error) {
	l, err := p.keys.OpenLogin(jwe)
	secret := func(t seal.Token) grant.Secret { return grant.NewSecret(t.Reveal()) }
	return login.Opened{
		Provider: l.Provider, User: l.User, SealedAt: l.SealedAt, Access: secret(l.Access), Refresh: secret(l.Refresh), ID: secret(l.ID),
		Scope: l.Scope, ExpiresAt: l.ExpiresAt, ExpiresIn: l.ExpiresIn,
	}, err
}

// rejected tells the world about a message that nobody could understand.
func (p *plant) rejected(ctx context.Context, m *consumers.Message, reason error) error {
	return p.engine.Publish(ctx, consumers.Rejected(p.conf.subjects(), m, reason, source, p.engine.Now()))
}
