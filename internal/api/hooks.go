package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/source/hook"
)

// Hooks takes messages posted from outside: hook.Door.
type Hooks interface {
	Take(ctx context.Context, source string, p hook.Post) (a hook.Answer, known bool)
}

// hookInput is a message as it came: signed are the bytes of its body.
type hookInput struct {
	Source  string `path:"source" doc:"The source's name in renewd's settings."`
	RawBody []byte `contentType:"*/*"`
	header  func(string) string
	from    string
}

// Resolve implements huma.Resolver: it keeps the parts of the request that the description does not
// name.
func (in *hookInput) Resolve(ctx huma.Context) []error {
	in.header, in.from = ctx.Header, host(ctx.RemoteAddr())
	return nil
}

// hookOutput is an answer in the form that the source's kind wants.
type hookOutput struct {
	Status      int
	ContentType string `header:"Content-Type"`
	Language    string `header:"Content-Language"`
	Body        []byte
}

const hookID = "hook"

func (a *API) registerHooks() {
	if a.c.Hooks == nil {
		return
	}
	op := operation(hookID, http.MethodPost, "/v1/hooks/{source}", "Post a message of a source",
		clients.Right(""), http.StatusRequestEntityTooLarge)
	op.Description = "For the sender that a source in renewd's settings names: a webhook as " +
		"Standard Webhooks 1.0.0 has it (with svix- headers too), a logout token (OpenID Connect " +
		"Back-Channel Logout 1.0), or a security event token (RFC 8935). It proves by its " +
		"signature who it is from, and needs no client. 200 and 202: it was taken, or asks for " +
		"nothing. A refusal has the form that the kind's standard wants, or else is a problem."
	op.Metadata = map[string]any{signed: true}
	op.Security = []map[string][]string{}
	op.DefaultStatus = http.StatusAccepted
	op.RequestBody = &huma.RequestBody{Content: map[string]*huma.MediaType{}}
	op.Responses = map[string]*huma.Response{
		"200": {Description: "A logout token was taken."},
		"202": {Description: "Taken, or it asks for nothing."},
	}
	huma.Register(a.huma, op, a.hook)
	op.RequestBody.Required = false // without a body the request is refused in the form of the kind
	// The standards of logout tokens and of security event tokens have forms for refusals.
	a.huma.OpenAPI().Paths[op.Path].Post.Responses["400"].Content["application/json"] =
		&huma.MediaType{Schema: &huma.Schema{Type: huma.TypeObject}}
}

func (a *API) hook(ctx context.Context, in *hookInput) (*hookOutput, error) {
	answer, known := a.c.Hooks.Take(ctx, in.Source, hook.Post{Header: in.header, Body: in.RawBody})
	switch {
	case !known:
		return nil, problem(codeNotFound, "there is no source of this name that takes messages")
	case answer.Result.Refused() && !a.wrong.take(in.from):
		p := problem(codeLimited, "too many messages from this address were refused")
		p.RetryAfter = int(wrongEvery / time.Second)
		return nil, p
	case answer.Again:
		p := problem(codeUnavailable, answer.Detail)
		p.RetryAfter = 10
		return nil, p
	case answer.Status != 0:
		return standardised(answer)
	case answer.Result == hook.Malformed:
		return nil, malformed(answer.Detail, "body", answer.Detail)
	case answer.Result.Refused():
		return nil, problem(codeNotBelieved, answer.Detail)
	}
	return &hookOutput{Status: http.StatusAccepted}, nil
}

// standardised is an answer whose form a standard says.
func standardised(a hook.Answer) (*hookOutput, error) {
	out := &hookOutput{Status: a.Status}
	if a.Body == nil {
		return out, nil
	}
	var err error
	out.ContentType, out.Language = "application/json", "en"
	out.Body, err = json.Marshal(a.Body)
	return out, err
}
