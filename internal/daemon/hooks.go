package daemon

import (
	"context"
	"net/http"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/source/hook"
	"github.com/renewd/renewd/publishers"
)

// hooks is the door of the sources of posted messages; nil: the settings have no such source.
func (p *Resources) hooks() (*hook.Door, error) {
	all := p.Conf.Hooks()
	if len(all) == 0 {
		return nil, nil
	}
	d := hook.Deps{
		JetStream: p.JS, Subjects: p.Conf.Subjects(), Load: p.Store.Load, Calls: p.calls,
		Publisher: func(source string) (*publishers.Publisher, error) {
			return publishers.New(p.NC, publishers.WithPrefix(p.Conf.NATSPrefix),
				publishers.WithSource(source), publishers.WithClock(p.Engine.Now))
		},
		Logger: p.log, Meter: p.tel.meter,
	}
	if p.erase != nil {
		d.Forget = func(ctx context.Context, k grant.Key, source string) error {
			return p.erase(ctx, k, hook.SourceOf(source))
		}
	}
	door, err := hook.New(all, d)
	if err != nil {
		return nil, settings.Mistake(err)
	}
	return door, nil
}

// calls is the transport for calls made as a provider's other calls are.
func (p *Resources) calls(provider string, to ...string) (http.RoundTripper, error) {
	of, _ := p.Conf.Provider(provider) // the settings were checked to have the provider
	client, err := p.Client(of)
	if err != nil {
		return nil, err
	}
	return client.Transport(to...), nil
}
