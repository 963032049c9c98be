package api

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/time/rate"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/tokens"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// Tokens hands out access tokens: tokens.Source.
type Tokens interface {
	Get(ctx context.Context, r tokens.Request) (tokens.Token, error)
}

// Commands publishes in a client's name.
type Commands interface {
	// As is the publisher of a client's commands. Each command takes the options that mark it as
	// sent over HTTP.
	As(client string) (*publishers.Publisher, error)
	// Await publishes and waits for the answering outcome, as consumers.Await does.
	Await(
		ctx context.Context,
		k grant.Key,
		publish func(context.Context) (publishers.Receipt, error),
	) (schema.Event, error)
}

// Outcomes reads the stream of outcomes back.
type Outcomes interface {
	// Replay reads the stored outcomes, as consumers.Replay does.
	Replay(ctx context.Context, q consumers.Query) iter.Seq2[schema.Event, error]
}

// Store is the part of a grant.Store needed to read states.
type Store interface {
	Load(ctx context.Context, k grant.Key) (grant.Grant, error)
}

// ErrNotAllowed is the error of Config.Forget where the workers' own NATS user may not erase.
var ErrNotAllowed = errors.New("the workers' NATS user may not erase")

// Config is what the handlers need. Optional are Forget, Hooks, Version, the limits, Logger and
// Meter.
type Config struct {
	Clients  Authenticator
	Tokens   Tokens
	Commands Commands
	Outcomes Outcomes
	Store    Store
	Log      *Log // the live end of the outcomes
	// LastOutcome is the newest outcome about a user; false if there is no outcome. stream.Engine
	// has it.
	LastOutcome func(ctx context.Context, k grant.Key) (schema.Event, bool, error)
	// Forget erases a user, on behalf of a client, and takes more than ten seconds. Its error wraps
	// grant.ErrNotFound if nothing is known of the user, ErrNotAllowed if the client may not. If
	// Forget is nil, there is no such operation.
	Forget func(ctx context.Context, k grant.Key, client string) error
	// Hooks takes messages about users from outside. nil: there is no such operation.
	Hooks Hooks
	// InClear: requests cross a network without TLS. Then no client is served. Messages to Hooks
	// are taken, since a signature proves them.
	InClear bool
	// Known reports whether a provider is in the settings.
	Known   func(provider string) bool
	Version string // of renewd, for the description

	// ClientRate is how many requests a second one client may make of this process. Default 20,000.
	ClientRate int
	// MaxListeners is how many may listen to outcomes at a time. Default 10,000.
	MaxListeners int
	// MaxReplays is how many may read stored outcomes at a time. Default 8.
	MaxReplays int
	Logger     *slog.Logger // nil: nothing is logged
	Meter      metric.Meter // nil: nothing is measured
}

func (c Config) withDefaults() Config {
	c.ClientRate = cmp.Or(c.ClientRate, 20_000)
	c.MaxListeners = cmp.Or(c.MaxListeners, 10_000)
	c.MaxReplays = cmp.Or(c.MaxReplays, 8)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Meter == nil {
		c.Meter = noop.Meter{}
	}
	return c
}

// API is the HTTP interface. Safe for concurrent use.
type API struct {
	c         Config
	huma      huma.API
	meters    meters
	wrong     *limiters // by address
	limits    *limiters // by client
	listeners chan struct{}
	replays   chan struct{}
}

// maxBody is the longest body of a request, in bytes.
const maxBody = 64 << 10

// New registers version 1 on the mux.
func New(mux *http.ServeMux, c Config) *API {
	ownErrors()
	c = c.withDefaults()
	a := &API{
		c: c, meters: newMeters(c.Meter), wrong: newLimiters(rate.Every(wrongEvery), wrongBurst),
		limits:    newLimiters(rate.Limit(c.ClientRate), c.ClientRate),
		listeners: make(chan struct{}, c.MaxListeners), replays: make(chan struct{}, c.MaxReplays),
	}
	a.huma = humago.New(mux, description(c.Version))
	a.huma.UseMiddleware(a.measure, a.authenticate)
	a.registerCommands()
	a.registerUsers()
	a.registerToken()
	a.registerOutcomes()
	a.registerHooks()
	a.describe()
	mux.HandleFunc("GET "+problemPath+"{code}", problemPage)
	mux.HandleFunc("/v1/", notFound)
	return a
}

// describe corrects huma's own description of each operation: here a request that does not fit is
// answered by 400, and a command with a wait by 200.
func (a *API) describe() {
	for _, path := range a.huma.OpenAPI().Paths {
		for _, op := range []*huma.Operation{path.Get, path.Post, path.Delete} {
			if op == nil {
				continue
			}
			delete(op.Responses, "422")
			if stored, ok := op.Responses["202"]; ok && op.OperationID != hookID {
				answered := *stored
				answered.Description = "Answered: the outcome is in the body."
				op.Responses["200"] = &answered
			}
			if op.OperationID == "state" {
				op.Responses["304"] = &huma.Response{
					Description: "Nothing has changed since the version of If-None-Match.",
				}
			}
		}
	}
}

// OpenAPI is the description, as JSON.
func (a *API) OpenAPI() ([]byte, error) { return a.huma.OpenAPI().MarshalJSON() }

// description is what OpenAPI says of the whole.
func description(version string) huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	config := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "renewd", Version: cmp.Or(version, "dev"),
				Description: "Fresh access tokens, logins, renewals and outcomes for " +
					"services without a NATS client.",
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"client": {
						Type:        "http",
						Scheme:      "bearer",
						Description: "The secret that renewd clients add printed.",
					},
				},
			},
			Security: []map[string][]string{{"client": {}}},
		},
		OpenAPIPath: "/v1/openapi", Formats: huma.DefaultFormats, DefaultFormat: "application/json",
		RejectUnknownQueryParameters: true,
	}
	return config
}

// operation describes an operation, with the problems that any operation may answer.
func operation(
	id, method, path, summary string,
	need clients.Right,
	problems ...int,
) huma.Operation {
	return huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		Metadata: map[string]any{
			right: need,
		}, MaxBodyBytes: maxBody, BodyReadTimeout: 5 * time.Second,
		Errors: append([]int{400, 401, 403, 404, 429, 500, 503}, problems...),
	}
}

// UserPath names a user in a path. Huma reads it only under an exported name.
type UserPath struct {
	Provider string `path:"provider" doc:"The provider's id in renewd's settings." example:"propelauth"`
	User     string `path:"user" doc:"The user's id as the provider writes it, percent-encoded." example:"auth0%7Cjane"`
}

// key checks the names.
func (a *API) key(provider, user string) (grant.Key, error) {
	k := grant.Key{Provider: provider, User: user}
	if err := schema.CheckProvider(provider); err != nil {
		return k, malformed(err.Error(), "provider", err.Error())
	}
	if err := schema.CheckUser(user); err != nil {
		return k, malformed(err.Error(), "user", err.Error())
	}
	if !a.c.Known(provider) {
		return k, problem(
			schema.TokenUnknownProvider,
			"provider "+provider+" is not in renewd's settings",
		)
	}
	return k, nil
}
