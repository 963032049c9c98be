package refresh

import (
	"context"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// unnamed says why the provider did not name the user of a login.
type unnamed struct{ field, message string }

const neverNamed = "the provider could not be brought to name their user: "

// unproven makes reject the next step.
func (r *renewal) unproven(field, message string) step {
	r.unnamed = unnamed{field, message}
	return reject
}

// reject ends a candidate whose user the provider did not name. The proven side goes on as if the
// candidate had never come.
func (r *renewal) reject(ctx context.Context, g *grant.Grant) (step, error) {
	field, message := r.unnamed.field, r.unnamed.message
	bad := schema.Malformed{Reason: schema.RejectUnproven, Field: field, Message: message}
	answered := g.Candidate.Cause
	subject := r.Subjects.Of(schema.Address{
		Type: schema.UserLogin, Provider: r.key.Provider, User: r.key.User, Sender: answered.Sender,
	})
	r.Logger.Warn("login rejected: what was proven before stays",
		"grant", r.key, "field", field, "reason", message)
	e := g.Rejection(r.turn(), bad, subject, r.Source)
	if ok, err := r.outcomes.publish(ctx, e, g.Mark()); !ok || err != nil {
		return load, err
	}
	ok, err := r.record.update(ctx, g, func(cur *grant.Grant) bool {
		*cur = cur.Rejected(r.turn())
		return true
	})
	if !ok || err != nil {
		return load, err
	}
	if grant.IsCommand(r.given.Cause) && !grant.SameCause(r.given.Cause, answered) {
		return load, nil // the command is for something else, and still to be answered
	}
	return rearm, nil
}
