package health

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/renewd/renewd/schema"
)

// tell publishes the record's untold events, oldest first, and removes each from the record. An
// event's id follows from the outage. So two workers that publish an event at the same time, or a
// worker that dies in between, make only one event.
func (g *Guard) tell(ctx context.Context) error {
	for _, n := range g.state.Load().Untold {
		e, err := g.event(ctx, n)
		if err != nil {
			return err
		}
		if err := g.Brake.Publish(ctx, e); err != nil {
			return fmt.Errorf("publish %s of %s: %w", n.Type, g.Provider, err)
		}
		g.log(n)
		if err := g.change(ctx, func(s State) State { return s.Told(n) }); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guard) event(ctx context.Context, n Notice) (schema.Event, error) {
	waiting, err := g.Brake.Waiting(ctx, g.Provider)
	if err != nil {
		waiting = 0 // the figure is a courtesy
	}
	data, err := json.Marshal(schema.ProviderState{
		Reason:  n.Reason,
		Since:   n.Since.UTC(),
		Waiting: waiting,
		By:      n.By,
		Note:    n.Note,
		Until:   n.Until,
	})
	if err != nil {
		return schema.Event{}, err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "renewd provider\x00%s\x00%s\x00%s\x00%d", n.Type,
		g.Provider, n.Reason, n.Since.UnixNano()))
	return schema.Event{
		ID:       base64.RawURLEncoding.EncodeToString(sum[:16]),
		Source:   g.Source,
		Type:     n.Type,
		Provider: g.Provider,
		Time:     n.At.UTC(),
		Data:     data,
	}, nil
}

func (g *Guard) log(n Notice) {
	if n.Type == schema.ProviderRecovered {
		g.Logger.Info("provider recovered", "provider", g.Provider, "reason", n.Reason,
			"since", n.Since, "by", n.By)
		return
	}
	g.Logger.Error("provider degraded: no user is signed out", "provider", g.Provider,
		"reason", n.Reason, "since", n.Since, "by", n.By, "hint", Hint(n.Reason))
}

// Hint says what to do about an outage for this reason.
func Hint(reason string) string {
	switch reason {
	case ReasonConfig:
		return "the provider refuses this client: check client_id, client_secret, client_auth " +
			"and the URLs in renewd's settings"
	case ReasonThrottled:
		return "the provider asks for patience, and gets it; if that happens again and again, " +
			"set rate for this provider to what it allows"
	case ReasonUnknown:
		return "no user is renewed, and the provider answers in words that renewd does not know: " +
			"is the client allowed to refresh, are client_secret and client_auth right?"
	case ReasonMassFailure:
		return "most users are refused at once: is the client id right, was the provider's " +
			"database restored? If they really all left, raise dead_share above 1 for this provider"
	case ReasonPaused:
		return "an operator paused it: renewd provider resume ends that"
	default:
		return "is the provider reachable from here? It is tried again by itself"
	}
}
