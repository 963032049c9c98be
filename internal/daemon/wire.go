package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/renewd/renewd/consumers/login"
	"github.com/renewd/renewd/consumers/refresh"
	"github.com/renewd/renewd/consumers/request"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/senders"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/internal/tokens/door"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Source is the CloudEvents source of renewd's own events.
const Source = "/renewd"

// layers are the parts of the running program, the lowest layer first.
func (p *Resources) layers() ([][]Service, error) {
	providers, guards, err := p.providers()
	if err != nil {
		return nil, err
	}
	runners, err := p.runners(providers)
	if err != nil {
		return nil, err
	}
	support := []Service{
		p.Engine.Run, p.announce,
		func(ctx context.Context) error {
			return p.Keys.watch(ctx, p.log, p.publishKeys, p.Engine.Retired)
		},
		p.repair().Run,
		reconcile.Resealer{
			Store: p.Store, Engine: p.Engine, Old: p.Keys.Old, KeyOf: seal.StoreKeyOf,
			Meter: p.tel.meter, Logger: p.log,
		}.Run,
	}
	if p.Keys.TakesLogins() { // without login keys a worker cannot tell whose key this is
		support = append(support, p.watchPublished)
	}
	for _, g := range guards {
		support = append(support, g.Run)
	}
	source, err := p.tokenSource()
	if err != nil {
		return nil, err
	}
	handler, follow, err := p.api(source)
	if err != nil {
		return nil, err
	}
	p.services = handler
	support = append(append(support, follow...), atEnd(source.Close))
	runners = append(runners, p.tokenDoor(source))
	sinks, err := p.sinks()
	if err != nil {
		return nil, err
	}
	tables, err := p.tables()
	if err != nil {
		return nil, err
	}
	runners = append(append(runners, sinks...), tables...)
	ground := []Service{atEnd(p.Close)}
	if p.server != nil {
		ground = append(ground, p.watchServer)
	}
	return [][]Service{ground, support, runners}, nil
}

// repair walks the store, and brings back lost timers.
func (p *Resources) repair() reconcile.Reconciler {
	r := p.reconciler
	r.Store, r.Engine, r.Meter, r.Logger = p.Store, p.Engine, p.tel.meter, p.log
	return r
}

// tokenDoor answers requests for access tokens over NATS.
func (p *Resources) tokenDoor(source *tokens.Source) Service {
	return door.Config{
		Conn: p.NC, Subjects: p.Conf.Subjects(), Tokens: source,
		MayRead: p.Conf.SenderRights().MayReadTokens, Logger: p.log,
	}.Run
}

// watchServer notices when the embedded server ended by itself. At the end Close shuts the server
// down, after the connection.
func (p *Resources) watchServer(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if !p.server.Running() {
				return errors.New("the embedded NATS server ended by " +
					"itself: its log above says why")
			}
		}
	}
}

// providers makes the clients of the settings' providers, and the guards that watch over the
// providers.
func (p *Resources) providers() (map[string]refresh.Provider, []*health.Guard, error) {
	providers := map[string]refresh.Provider{}
	var guards []*health.Guard
	for _, s := range p.Conf.Providers {
		client, err := p.Client(s)
		if err != nil {
			return nil, nil, fmt.Errorf("provider %s: %w", s.ID, err)
		}
		g, err := health.New(health.Config{
			Provider:    s.ID,
			Settings:    client.Settings(),
			Rules:       s.Guard.Rules(),
			Concurrency: s.Concurrency,
			Bucket:      p.health,
			Brake:       p.Engine,
			Wake:        reconcile.Waker{Store: p.Store, Engine: p.Engine}.Wake,
			Source:      Source,
			Now:         p.Engine.Now,
			Logger:      p.log,
		})
		if err != nil {
			return nil, nil, err
		}
		guards = append(guards, g)
		provider := refresh.Provider{
			Client:         client,
			Policy:         s.GrantPolicy(),
			Guard:          g,
			RevokeReplaced: s.RevokeReplaced,
		}
		budget := health.NewBudget(health.BudgetConfig{Name: s.ID, Rate: s.Rate, Bucket: p.health,
			Now: p.Engine.Now})
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
func (p *Resources) runners(providers map[string]refresh.Provider) ([]Service, error) {
	logins, err := p.Logins(providers)
	if err != nil {
		return nil, err
	}
	requests := &request.Consumer{
		Subjects: p.Conf.Subjects(),
		Stream:   p.Engine,
		Refuse:   p.Conf.SenderRights().Refuse,
		Admit:    p.admit(),
		Known:    func(id string) bool { _, ok := providers[id]; return ok },
	}
	renewals, err := refresh.New(refresh.Config{
		Store: p.Store, Timers: p.Engine, Outcomes: p.Engine, Parking: p.Engine, Logins: p.Engine,
		Now: p.Engine.Now, Parse: p.Engine.ParseWork, Cipher: p.Keys,
		Providers: providers, Subjects: p.Conf.Subjects(), Source: Source,
		MaxProfile: int(p.NC.MaxPayload() / 2), Rand: draw, Logger: p.log, Meter: p.tel.meter,
	})
	if err != nil {
		return nil, err
	}
	var parts []Service
	add := func(
		base, durable, template string, slots int, handle runner.Handler,
		putOff func(context.Context, *runner.Message, error) error,
	) error {
		r, err := runner.New(runner.Config{
			JetStream: p.JS,
			Stream:    p.Conf.Subjects().Name(base),
			Durable:   durable,
			Template:  template,
			Handler:   handle,
			PutOff:    putOff,
			Rejected:  p.rejected,
			Ready:     p.Engine.Ready,
			Slots:     slots,
			Drain:     p.Conf.DrainTimeout,
			Logger:    p.log,
			Tracer:    p.tel.tracer,
			Meter:     p.tel.meter,
		})
		parts = append(parts, r.Run)
		return err
	}
	err = add(topology.Requests, topology.ConsumerRequest, "user.refresh_due", p.Conf.Workers,
		requests.Handle, nil)
	if p.Conf.TakeLogins {
		err = errors.Join(err,
			add(topology.Logins, topology.ConsumerLogin, "user.login", p.Conf.Workers,
				logins.Handle, logins.PutOff),
			add(topology.Renewals, topology.ConsumerDeferred, "login.deferred", p.Conf.Workers,
				logins.HandleDeferred, logins.PutOffDeferred))
	}
	for _, s := range p.Conf.Providers {
		err = errors.Join(err,
			add(topology.Renewals, topology.ConsumerRenew(s.ID), "renewal.due", s.Concurrency,
				renewals.Handle, renewals.PutOff))
	}
	return parts, err
}

func (p *Resources) Logins(providers map[string]refresh.Provider) (*login.Consumer, error) {
	policies := map[string]grant.Policy{}
	for id, provider := range providers {
		policies[id] = provider.Policy
	}
	return login.New(login.Config{
		Subjects:   p.Conf.Subjects(),
		Store:      p.Store,
		Stream:     p.Engine,
		Policies:   policies,
		Refuse:     p.Conf.SenderRights().Refuse,
		Admit:      p.admit(),
		Open:       p.openLogin,
		Revoke:     revoker(providers, p.Engine.Now),
		Cipher:     p.Keys,
		Source:     Source,
		KeyMissing: func(err error) bool { return errors.Is(err, seal.ErrUnknownKey) },
		MaxSealAge: p.Conf.LoginMaxAge,
		Now:        p.Engine.Now,
		Rand:       draw,
		Logger:     p.log,
	})
}

// admit holds the commands of one consumer against their senders' rates. All workers share the
// rates by permits, which lie beside the providers' permits.
func (p *Resources) admit() func(context.Context, *runner.Message, schema.Event) error {
	share := func(name string, rate float64, burst int) senders.Permits {
		return health.NewBudget(health.BudgetConfig{
			Name: "sender." + name, Rate: rate, Burst: burst, Bucket: p.health, Now: p.Engine.Now,
		})
	}
	gate := senders.NewGate(p.Conf.SenderRights(), time.Now, share)
	return func(ctx context.Context, m *runner.Message, e schema.Event) error {
		return gate.Admit(ctx, e, m.Deliveries, func(ctx context.Context) (bool, error) {
			k := grant.Key{Provider: e.Provider, User: e.User}
			return p.Engine.Answered(ctx, k, p.rejection(m, nil).ID)
		})
	}
}

// revoker ends refresh tokens at the providers. It calls no provider left alone for now, and keeps
// to each provider's rate.
func revoker(
	providers map[string]refresh.Provider, now func() time.Time,
) func(context.Context, string, secret.Value) error {
	return func(ctx context.Context, id string, token secret.Value) error {
		p := providers[id]
		if p.Guard != nil && p.Guard.Wait(now()) > 0 {
			return &grant.Fault{Class: grant.Unsent, Op: "revoke", Err: errLeftAlone}
		}
		if p.Limiter != nil {
			if err := p.Limiter.Wait(ctx); err != nil {
				return &grant.Fault{Class: grant.Unsent, Op: "revoke", Err: err}
			}
		}
		return p.Client.Revoke(ctx, token)
	}
}

var errLeftAlone = errors.New("the provider is left alone for now: see renewd provider show")

func (p *Resources) openLogin(jwe string) (login.Opened, error) {
	l, err := p.Keys.OpenLogin(jwe)
	return login.Opened{
		Provider:  l.Provider,
		User:      l.User,
		SealedAt:  l.SealedAt,
		Access:    l.Access,
		Refresh:   l.Refresh,
		ID:        l.ID,
		Scope:     l.Scope,
		ExpiresAt: l.ExpiresAt,
		ExpiresIn: l.ExpiresIn,
	}, err
}

// rejected publishes once that a message could not be understood. A worker that has lost the lease
// leaves the rejection to the worker that has the message now.
func (p *Resources) rejected(ctx context.Context, m *runner.Message, reason error) error {
	if !m.Held() {
		return runner.ErrLeaseLost
	}
	return p.Engine.PublishOnce(ctx, p.rejection(m, reason), m.Time, m.Deliveries > 1)
}

// rejection is the answer to such a message; its id depends on the message alone.
func (p *Resources) rejection(m *runner.Message, reason error) schema.Event {
	return runner.Rejected(p.Conf.Subjects(), m, reason, Source, p.Engine.Now())
}
