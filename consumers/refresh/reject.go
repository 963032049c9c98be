package refresh

import (
	"context"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// reject ends a candidate that the provider did not name the user with. What is proven goes on as
// if it had never come.
func (t *task) reject(ctx context.Context, g grant.Grant, field, message string) error {
	bad := schema.Malformed{Reason: schema.RejectUnproven, Field: field, Message: message}
	subject := t.Subjects.Of(schema.Address{
		Type: schema.UserLogin, Provider: t.key.Provider, User: t.key.User,
		Sender: g.Candidate.Cause.Sender,
	})
	t.Logger.Warn("login rejected: what was proven before stays", "grant", t.key, "field", field, "reason", message)
	if err := t.publish(ctx, g.Rejection(t.turn(), bad, subject, t.Source), g.Mark()); err != nil {
		return err
	}
	answered := g.Candidate.Cause
	g, err := t.update(ctx, g, func(cur grant.Grant) (grant.Grant, bool) { return cur.Rejected(t.turn()), true })
	if err != nil {
		return err
	}
	if grant.IsCommand(t.given.Cause) && !grant.SameCause(t.given.Cause, answered) {
		return errAgain // somebody asked for something else, and waits for it
	}
	return t.arm(ctx, g, true)
}

// hopeless reports whether one more failure like f is the last that a candidate may have.
func (t *task) hopeless(g grant.Grant, f grant.Failure) bool {
	if !g.OnCandidate() {
		return false
	}
	p := t.provider.Policy
	failures := g.Attempts + g.Outages + 1
	old := !g.Login.Time.IsZero() && t.Stream.Now().Sub(g.Login.Time) > p.MaxLifetime
	witness := t.provider.named.Load() > g.Login.Time.UnixNano() // userinfo has named somebody since: it works
	return failures >= p.Tries && (old || f.Own && witness) || f.Own && f.Final
}
