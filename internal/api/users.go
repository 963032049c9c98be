package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

type stateInput struct {
	UserPath
	IfNoneMatch string `header:"If-None-Match" doc:"An ETag of before: 304 while nothing has changed."`
}

// State is what is known of a user. It holds no token and no part of a token.
type State struct {
	Provider    string          `json:"provider"`
	User        string          `json:"user"`
	Status      grant.Status    `json:"status" doc:"live, dormant, reauth_required, signed_out, suspended, unproven or the like. The list is open."`
	Reason      string          `json:"reason,omitempty" doc:"Why the user is not renewed, or of the last failure."`
	Version     int64           `json:"version" doc:"Grows with each change that is stored."`
	ExpiresAt   time.Time       `json:"expires_at,omitzero" doc:"When the access token ends."`
	NextDueAt   time.Time       `json:"next_due_at,omitzero" doc:"When the user is looked at next."`
	LoginAt     time.Time       `json:"login_at,omitzero"`
	RefreshedAt time.Time       `json:"refreshed_at,omitzero" doc:"When the tokens were last renewed."`
	SyncedAt    time.Time       `json:"synced_at,omitzero" doc:"When the profile was last stored."`
	FailedAt    time.Time       `json:"failed_at,omitzero"`
	ActiveAt    time.Time       `json:"active_at,omitzero" doc:"When a service last asked for the user."`
	Profile     *schema.Profile `json:"profile,omitempty"`
	LastOutcome *Outcome        `json:"last_outcome,omitempty" doc:"The newest event about the user, while it is kept."`
}

type stateOutput struct {
	Status int
	ETag   string `header:"ETag"`
	Body   *State
}

type forgetInput struct{ UserPath }

func (a *API) registerUsers() {
	const path = "/v1/users/{provider}/{user}"
	state := operation("state", http.MethodGet, path, "See a user's state", clients.Read)
	state.Description = "Never a token: see the operation token."
	huma.Register(a.huma, state, a.state)
	if a.c.Forget == nil {
		return
	}
	forget := operation("forget", http.MethodDelete, path, "Erase a user everywhere", clients.Admin)
	forget.Description = "Revokes the session at the provider, then erases the user from the " +
		"store, the streams and the log of outcomes. It takes more than ten seconds, " +
		"and answers when it is done."
	huma.Register(a.huma, forget, a.forget)
}

func (a *API) state(ctx context.Context, in *stateInput) (*stateOutput, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	g, err := a.c.Store.Load(ctx, k)
	switch {
	case errors.Is(err, grant.ErrNotFound), err == nil && g.Status == grant.Forgotten:
		return nil, problem(
			schema.TokenUnknownUser,
			"no login of this user was ever seen, or the user was erased",
		)
	case err != nil && ctx.Err() == nil:
		a.c.Logger.Warn("a state could not be read", "grant", k, "err", err)
		fallthrough
	case err != nil:
		return nil, problem(schema.TokenStoreDown, "")
	}
	out := &stateOutput{Status: http.StatusOK, ETag: `"` + strconv.FormatInt(g.Version, 10) + `"`}
	if in.IfNoneMatch == out.ETag {
		out.Status = http.StatusNotModified
		return out, nil
	}
	out.Body, err = a.stateOf(ctx, g)
	return out, err
}

func (a *API) stateOf(ctx context.Context, g grant.Grant) (*State, error) {
	profile, err := g.Profile.Decode()
	if err != nil {
		a.c.Logger.Warn("a stored profile could not be read", "grant", g.Key, "err", err)
		return nil, problem(codeInternal, "the stored profile cannot be read")
	}
	s := &State{
		Provider:    g.Provider,
		User:        g.User,
		Status:      g.Status,
		Version:     g.Version,
		ExpiresAt:   g.Pair.ExpiresAt,
		NextDueAt:   g.NextDueAt,
		LoginAt:     g.LoginAt,
		RefreshedAt: g.RefreshedAt,
		SyncedAt:    g.SyncedAt,
		FailedAt:    g.FailedAt,
		ActiveAt:    g.ActiveAt,
		Reason:      g.LastError,
		Profile:     profile,
	}
	if g.Verdict != nil && g.Status == grant.ReauthRequired {
		s.Reason = g.Verdict.Reason
	}
	if !g.SuspendedAt().IsZero() {
		s.Reason = schema.ReasonSuspended
	}
	// The outcome is beside the state: without NATS the state is still answered.
	if e, found, err := a.c.LastOutcome(ctx, g.Key); err == nil && found {
		o := OutcomeOf(e)
		s.LastOutcome = &o
	}
	return s, nil
}

// forgetLimit is how long an erasure may take.
const forgetLimit = 2 * time.Minute

func (a *API) forget(ctx context.Context, in *forgetInput) (*struct{}, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	c := callerOf(ctx)
	c.stays(forgetLimit)
	// An erasure that has begun goes on when the caller hangs up: half an erasure helps no user.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetLimit)
	defer cancel()
	switch err := a.c.Forget(ctx, k, c.Name); {
	case errors.Is(err, grant.ErrNotFound):
		return nil, problem(schema.TokenUnknownUser, "nothing is known of this user")
	case errors.Is(err, ErrNotAllowed):
		return nil, problem(codeNotAllowed, "erase the user with renewd user forget, as operator")
	case err != nil:
		a.c.Logger.Warn("an erasure was not finished; it must be run again", "grant", k, "err", err)
		return nil, problem(codeUnavailable, "some of it may be erased: send the request again")
	}
	return nil, nil
}
