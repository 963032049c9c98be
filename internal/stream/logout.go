package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// loginsOf are the filters in LOGINS of all commands about a user.
func (e *Engine) loginsOf(k grant.Key) []string {
	var all []string
	for _, of := range topology.InLogins() {
		all = append(all, e.commands(of, k)...)
	}
	return all
}

// sealsNothing reports whether a subject in LOGINS is of another command than a login, well-formed
// or not.
func (e *Engine) sealsNothing(subject string) bool {
	rest := strings.TrimPrefix(subject, topology.Prefixed(e.config.Subjects, ""))
	if from, ok := strings.CutPrefix(rest, "from."); ok {
		_, rest, _ = strings.Cut(from, ".")
	}
	return slices.ContainsFunc(topology.InLogins(), func(of schema.Type) bool {
		return of != schema.UserLogin && strings.HasPrefix(rest, string(of)+".")
	})
}

// deferrals are the subjects of a user's logins, and other commands of their stream, which are put
// off, in the order in which a message moves.
func (e *Engine) deferrals(k grant.Key) []string {
	var all []string
	for _, of := range topology.InLogins() {
		for _, front := range []string{topology.DeferredTimerFront, topology.DeferredDueFront} {
			about := schema.Address{Type: of, Provider: k.Provider, User: k.User}
			all = append(all, e.deferredTo(front, about))
		}
	}
	return all
}

// OlderLoginWaits reports whether a login of the user from before this place is on its way to the
// store: the login is in LOGINS, or is due again after it was put off. A login put off whose time
// has not come is removed: the command at this place ends the login before it begins.
func (e *Engine) OlderLoginWaits(
	ctx context.Context, k grant.Key, place grant.Position,
) (bool, error) {
	for _, subject := range e.commands(schema.UserLogin, k) {
		m, err := e.read(ctx, topology.Logins, query{Next: subject, From: 1})
		if err == nil && m.Sequence < place.Sequence {
			return true, nil
		}
		if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
			return false, fmt.Errorf("look for a login of %s: %w", k, err)
		}
	}
	login := schema.Address{Type: schema.UserLogin, Provider: k.Provider, User: k.User}
	timer := e.deferredTo(topology.DeferredTimerFront, login)
	due := false
	err := e.eachDeferred(ctx, login, func(m *jetstream.RawStreamMsg) error {
		l := e.loginIn(ctx, m)
		switch {
		case !l.ours || !l.position.Before(place):
		case m.Subject == timer: // if the timer fires meanwhile, the login is shown again, due
			return e.purge(ctx, topology.Renewals, []string{timer},
				jetstream.WithPurgeSequence(l.sequence+1))
		default:
			due = true
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look for a login of %s: %w", k, err)
	}
	return due, nil
}

// Disarm removes the grant's timer. A message already due stays, and finds the grant as it is then.
func (e *Engine) Disarm(ctx context.Context, k grant.Key) error {
	if err := e.purge(ctx, topology.Renewals, []string{e.timer(k)}); err != nil {
		return fmt.Errorf("cancel timer of %s: %w", k, err)
	}
	return nil
}
