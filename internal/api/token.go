package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/schema"
)

type tokenInput struct {
	UserPath
	MinValid string `query:"min_valid" default:"60s" doc:"How long the token is to be good for at least: 90s, 5m or the like. 0s takes any that lives."`
}

// tokenOutput is an access token. No other answer ever holds a token.
type tokenOutput struct {
	Body struct {
		AccessToken string    `json:"access_token"`
		TokenType   string    `json:"token_type" doc:"How it is presented, Bearer for instance."`
		Scope       string    `json:"scope,omitempty"`
		ExpiresAt   time.Time `json:"expires_at,omitzero" doc:"Missing: the provider gave it no end."`
		ExpiresIn   int64     `json:"expires_in,omitempty" doc:"The same in seconds from now."`
		Version     int64     `json:"version" doc:"Of the user's record: grows with each renewal."`
		Short       string    `json:"short,omitempty" doc:"Why it is good for less than was asked for: capped, delayed or no_refresh_token. The list is open."`
	}
}

func (a *API) registerToken() {
	huma.Register(a.huma, operation("token", http.MethodGet, "/v1/users/{provider}/{user}/token",
		"Read a fresh access token", clients.Token, http.StatusConflict), a.token)
}

func (a *API) token(ctx context.Context, in *tokenInput) (*tokenOutput, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	want, err := time.ParseDuration(in.MinValid)
	if err != nil || want < 0 {
		const message = "want a duration such as 90s or 5m"
		return nil, malformed("min_valid: "+message, "query.min_valid", message)
	}
	if want == 0 {
		want = -1 // any living token
	}
	c := callerOf(ctx)
	c.stays(longestWait)
	t, err := a.c.Tokens.Get(
		ctx,
		tokens.Request{
			Provider: k.Provider,
			User:     k.User,
			MinValid: want,
			Reader:   c.Name,
			Door:     tokens.DoorHTTP,
		},
	)
	if err != nil {
		return nil, a.noToken(ctx, k.Provider, err)
	}
	out := &tokenOutput{}
	out.Body.AccessToken, out.Body.TokenType, out.Body.Scope = t.Access.Reveal(), t.Type, t.Scope
	out.Body.ExpiresAt, out.Body.Version, out.Body.Short = t.ExpiresAt, t.Version, t.Short
	if !t.ExpiresAt.IsZero() {
		out.Body.ExpiresIn = int64(time.Until(t.ExpiresAt) / time.Second)
	}
	return out, nil
}

func (a *API) noToken(ctx context.Context, provider string, err error) error {
	no, ok := errors.AsType[*schema.NoToken](err)
	switch {
	case ok:
		return noToken(no)
	case ctx.Err() == nil:
		a.c.Logger.Warn("a token could not be read", "provider", provider, "err", err)
	}
	return problem(codeUnavailable, "")
}
