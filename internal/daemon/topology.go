package daemon

import (
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
)

// Topology is what the settings want on a NATS server.
func Topology(c *settings.Settings) topology.Topology {
	t := topology.Topology{
		Subjects:      c.Subjects(),
		Grants:        c.DatabaseURL.IsZero(),
		Replicas:      c.NATSReplicas,
		OutcomeMaxAge: c.OutcomeAge,
		OutcomeBytes:  int64(c.OutcomeBytes),
		CommandBytes:  int64(c.CommandBytes),
	}
	t.Sources = len(c.Sources) > 0
	for _, p := range c.Providers {
		t.Providers = append(t.Providers, topology.Provider{ID: p.ID, Concurrency: p.Concurrency})
	}
	for _, name := range c.SinkNames() {
		s := c.Sinks[name]
		t.Sinks = append(t.Sinks, topology.Sink{
			Name: name, Types: s.OutcomeTypes(), Providers: s.Providers,
			InHand: sinkWindow * s.InFlight(),
		})
	}
	return t
}

// sinkWindow is how many outcomes a sink may handle for each delivery at a time: some outcomes wait
// for another of the same user.
const sinkWindow = 4
