package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// CommandHeaders are the headers of each request that publishes a command.
type CommandHeaders struct {
	Key string `header:"Idempotency-Key" maxLength:"256" doc:"The event's id: a request that is repeated with it is one command."`
	// Prefer is RFC 7240's: wait is in seconds.
	Prefer string `header:"Prefer" doc:"wait=10 answers with the outcome, if it comes within so many seconds (60 at most)." example:"wait=10"`
}

// loginInput is a login.
type loginInput struct {
	CommandHeaders
	Body struct {
		Provider string `json:"provider" doc:"The provider's id in renewd's settings."`
		User     string `json:"user" doc:"The user's id as the provider writes it."`
		Tokens   struct {
			AccessToken  string    `json:"access_token" minLength:"1" writeOnly:"true"`
			RefreshToken string    `json:"refresh_token,omitempty" writeOnly:"true" doc:"Without it the user must sign in again when the access token ends."`
			IDToken      string    `json:"id_token,omitempty" writeOnly:"true"`
			TokenType    string    `json:"token_type,omitempty" doc:"Taken for Bearer, whatever it says."`
			Scope        string    `json:"scope,omitempty"`
			ExpiresIn    int64     `json:"expires_in,omitempty" minimum:"0" maximum:"315360000" doc:"What is left of the access token's life, in seconds."`
			ExpiresAt    time.Time `json:"expires_at,omitzero" doc:"When the access token ends, in place of expires_in."`
		} `json:"tokens" doc:"As the provider's token endpoint answered. They are sealed on arrival."`
	}
}

// refreshInput asks for a renewal.
type refreshInput struct {
	UserPath
	CommandHeaders
	Body *struct {
		Want            string `json:"want,omitempty" enum:"profile,tokens" doc:"profile (the default) renews tokens only if they must be; tokens renews them now."`
		MinValidSeconds int    `json:"min_valid_seconds,omitempty" minimum:"0" maximum:"86400" doc:"How long the tokens are to be good for at least."`
		Reason          string `json:"reason,omitempty" maxLength:"256" doc:"Free text for the audit log."`
	} `required:"false"`
}

// logoutInput ends a session.
type logoutInput struct {
	UserPath
	CommandHeaders
	Body *struct {
		Revoke bool   `json:"revoke,omitempty" doc:"Revoke the refresh token at the provider first (RFC 7009)."`
		Reason string `json:"reason,omitempty" maxLength:"256" doc:"Free text for the audit log."`
	} `required:"false"`
}

// holdInput suspends or resumes a user.
type holdInput struct {
	UserPath
	CommandHeaders
	Body *struct {
		Reason string `json:"reason,omitempty" maxLength:"256" doc:"Free text for the audit log."`
	} `required:"false"`
}

// accepted answers a command.
type accepted struct {
	Status            int
	PreferenceApplied string `header:"Preference-Applied"`
	Body              struct {
		Source    string   `json:"source" doc:"Of the event, and"`
		ID        string   `json:"id" doc:"its id: the cause that its outcome names."`
		Duplicate bool     `json:"duplicate,omitempty" doc:"The same command was stored within the last two minutes."`
		Outcome   *Outcome `json:"outcome,omitempty" doc:"What became of it, where the request preferred to wait and it came in time."`
	}
}

func (a *API) registerCommands() {
	login := operation(
		"login",
		http.MethodPost,
		"/v1/logins",
		"Tell of a login",
		clients.Login,
		http.StatusRequestEntityTooLarge,
	)
	login.DefaultStatus = http.StatusAccepted
	huma.Register(a.huma, login, a.login)
	refresh := operation(
		"refresh",
		http.MethodPost,
		"/v1/users/{provider}/{user}/refresh",
		"Ask for a renewal",
		clients.Refresh,
		http.StatusRequestEntityTooLarge,
	)
	refresh.DefaultStatus = http.StatusAccepted
	huma.Register(a.huma, refresh, a.refresh)
	logout := operation(
		"logout",
		http.MethodPost,
		"/v1/users/{provider}/{user}/logout",
		"Sign a user out",
		clients.Logout,
		http.StatusRequestEntityTooLarge,
	)
	logout.DefaultStatus = http.StatusAccepted
	huma.Register(a.huma, logout, a.logout)
	suspend := operation(
		"suspend",
		http.MethodPost,
		"/v1/users/{provider}/{user}/suspend",
		"Have a user rest",
		clients.Admin,
		http.StatusRequestEntityTooLarge,
	)
	suspend.Description = "The session is kept. Nothing of it is renewed and no token is handed " +
		"out, until the user is resumed or signs in again."
	suspend.DefaultStatus = http.StatusAccepted
	huma.Register(a.huma, suspend, a.suspend)
	resume := operation(
		"resume",
		http.MethodPost,
		"/v1/users/{provider}/{user}/resume",
		"End a user's suspension",
		clients.Admin,
		http.StatusRequestEntityTooLarge,
	)
	resume.Description = "The user is renewed at once, and the outcome is that of the renewal."
	resume.DefaultStatus = http.StatusAccepted
	huma.Register(a.huma, resume, a.resume)
}

func (a *API) login(ctx context.Context, in *loginInput) (*accepted, error) {
	k, err := a.key(in.Body.Provider, in.Body.User)
	if err != nil {
		return nil, err
	}
	caller := callerOf(ctx)
	if !caller.MayDo(clients.Login, k.Provider) {
		return nil, problem(
			codeForbidden,
			"client "+caller.Name+" may not publish logins of this provider",
		)
	}
	t := in.Body.Tokens
	given := publishers.Tokens{
		AccessToken:  t.AccessToken,
		RefreshToken: t.RefreshToken,
		IDToken:      t.IDToken,
		Scope:        t.Scope,
		ExpiresIn:    time.Duration(t.ExpiresIn) * time.Second,
		ExpiresAt:    t.ExpiresAt,
	}
	return a.command(ctx, k, in.CommandHeaders, func(
		p *publishers.Publisher, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return p.Login(ctx, k.Provider, k.User, given, o...)
	})
}

func (a *API) refresh(ctx context.Context, in *refreshInput) (*accepted, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	var want schema.RefreshDue
	if b := in.Body; b != nil {
		want = schema.RefreshDue{Want: b.Want, MinValidSeconds: b.MinValidSeconds, Reason: b.Reason}
	}
	return a.command(ctx, k, in.CommandHeaders, func(
		p *publishers.Publisher, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return p.RefreshDue(ctx, k.Provider, k.User, want, o...)
	})
}

func (a *API) logout(ctx context.Context, in *logoutInput) (*accepted, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	var l schema.Logout
	if in.Body != nil {
		l = schema.Logout{Revoke: in.Body.Revoke, Reason: in.Body.Reason}
	}
	return a.command(ctx, k, in.CommandHeaders, func(
		p *publishers.Publisher, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return p.Logout(ctx, k.Provider, k.User, l, o...)
	})
}

func (a *API) suspend(ctx context.Context, in *holdInput) (*accepted, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	var s schema.Suspend
	if in.Body != nil {
		s.Reason = in.Body.Reason
	}
	return a.command(ctx, k, in.CommandHeaders, func(
		p *publishers.Publisher, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return p.Suspend(ctx, k.Provider, k.User, s, o...)
	})
}

func (a *API) resume(ctx context.Context, in *holdInput) (*accepted, error) {
	k, err := a.key(in.Provider, in.User)
	if err != nil {
		return nil, err
	}
	var r schema.Resume
	if in.Body != nil {
		r.Reason = in.Body.Reason
	}
	return a.command(ctx, k, in.CommandHeaders, func(
		p *publishers.Publisher, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return p.Resume(ctx, k.Provider, k.User, r, o...)
	})
}

// publish publishes one command with a client's publisher and these options.
type publish func(*publishers.Publisher, ...publishers.EventOption) (publishers.Receipt, error)

// command publishes in the caller's name, and waits where the caller prefers to. Once the command
// is stored the answer is a success, also if no outcome came in time.
func (a *API) command(
	ctx context.Context, k grant.Key, h CommandHeaders, do publish,
) (*accepted, error) {
	wait, err := preferredWait(h.Prefer)
	if err != nil {
		return nil, err
	}
	publisher, err := a.c.Commands.As(callerOf(ctx).Name)
	if err != nil {
		return nil, a.failed(k, err)
	}
	out := &accepted{Status: http.StatusAccepted}
	callerOf(ctx).stays(publishLimit)
	if wait == 0 {
		receipt, err := do(publisher, options(h.Key)...)
		if err != nil {
			return nil, a.failed(k, err)
		}
		out.receive(receipt)
		return out, nil
	}
	var receipt publishers.Receipt
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	callerOf(ctx).stays(wait)
	e, err := a.c.Commands.Await(waiting, k, func(context.Context) (publishers.Receipt, error) {
		var err error
		// The command has its time also where the wait is short.
		receipt, err = do(publisher, options(h.Key)...)
		return receipt, err
	})
	if receipt.ID == "" {
		return nil, a.failed(k, err)
	}
	out.receive(receipt)
	if err == nil {
		outcome := OutcomeOf(e)
		out.Body.Outcome, out.Status = &outcome, http.StatusOK
		out.PreferenceApplied = "wait=" + strconv.Itoa(int(wait/time.Second))
	}
	return out, nil
}

func (o *accepted) receive(r publishers.Receipt) {
	o.Body.Source, o.Body.ID, o.Body.Duplicate = r.Source, r.ID, r.Duplicate
}

// failed is the problem of a command that was not stored. It logs the cause, which the caller does
// not see.
func (a *API) failed(k grant.Key, err error) error {
	p := ofCommand(err)
	if p.Status >= http.StatusInternalServerError && !errors.Is(err, context.Canceled) {
		a.c.Logger.Warn("a command over HTTP was not stored", "grant", k, "err", err)
	}
	return p
}

// publishLimit is longer than a publisher tries.
const publishLimit = 15 * time.Second

// longestWait is the longest wait granted to a Prefer header.
const longestWait = time.Minute

// preferredWait reads the wait of a Prefer header (RFC 7240, section 4.3). Other preferences are
// passed over, as the RFC wants.
func preferredWait(header string) (time.Duration, error) {
	for part := range strings.FieldsFuncSeq(header, func(r rune) bool {
		return r == ',' || r == ';'
	}) {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if !strings.EqualFold(strings.TrimSpace(name), "wait") {
			continue
		}
		n, err := strconv.Atoi(strings.Trim(strings.TrimSpace(value), `"`))
		if err != nil || n < 0 {
			const message = "want wait=<seconds>"
			return 0, malformed("Prefer: "+message, "header.Prefer", message)
		}
		return min(time.Duration(n)*time.Second, longestWait), nil
	}
	return 0, nil
}
