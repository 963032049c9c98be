package api

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/renewd/renewd/schema"
)

// Problem is every answer that is not a success: RFC 9457, section 3, with renewd's own members.
type Problem struct {
	Type   string `json:"type" format:"uri-reference" doc:"Page that says what the problem is and what helps, on this server."`
	Title  string `json:"title" doc:"Short summary of the type."`
	Status int    `json:"status" doc:"HTTP status code."`
	Detail string `json:"detail,omitempty" doc:"What was wrong with this request."`
	Code   string `json:"code" doc:"Last part of the type, for programs. The list is open."`

	Reason     string         `json:"reason,omitempty" doc:"Reason of the outcome behind it, such as revoked."`
	LoginAt    time.Time      `json:"login_at,omitzero" doc:"When the user last signed in."`
	Since      time.Time      `json:"since,omitzero" doc:"When the user's tokens ended."`
	RetryAfter int            `json:"retry_after_seconds,omitempty" doc:"When to ask again; missing: asking again is no use."`
	Fields     []FieldProblem `json:"errors,omitempty" doc:"What is wrong with which part of the request."`
}

// FieldProblem is what is wrong with one part of a request. It never holds the value, which may be
// a token.
type FieldProblem struct {
	Location string `json:"location" doc:"body.tokens.access_token, query.min_valid or the like."`
	Message  string `json:"message"`
}

// Error is what a log or a caller in Go sees of the problem.
func (p *Problem) Error() string { return p.Code + ": " + cmp.Or(p.Detail, p.Title) }

// GetStatus implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders implements huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="renewd"`)
	}
	return h
}

// kind is one type of problem.
type kind struct {
	code   string
	status int
	title  string
	help   string // the page of the type
}

// Codes of problems. The codes with schema names are also codes of a schema.NoToken.
const (
	codeMalformed    = schema.TokenMalformed
	codeUnauthorized = "unauthorized"
	codeForbidden    = schema.TokenForbidden
	codeNotFound     = "not_found"
	codeTooLarge     = "too_large"
	codeLimited      = "too_many_requests"
	codeUnavailable  = "unavailable"
	codeInternal     = "internal"
	codeNotAllowed   = "not_allowed_here"
	codeNeedsTLS     = "needs_tls"
	codeNotBelieved  = "not_believed"
)

// kinds are all types of problems, in the order in which their page lists them.
func kinds() []kind {
	return []kind{
		{codeMalformed, 400, "The request is not well formed",
			"The member errors names each part that is wrong. Nothing was done."},
		{codeUnauthorized, 401, "No client of this secret",
			"Send Authorization: Bearer and the secret that renewd clients add printed. " +
				"The client may have been removed."},
		{codeForbidden, 403, "The client may not do this",
			"The client lacks the right, or is bound to other providers. " +
				"renewd clients list shows what it may; to change that, " +
				"remove it and add it with other rights."},
		{codeNotAllowed, 403, "This installation does not allow it over HTTP",
			"The workers' own NATS user may not do this. " +
				"Do it with the renewd command, as operator."},
		{codeNeedsTLS, 403, "The link is not encrypted",
			"Secrets and tokens would cross the network in clear text. " +
				"Set http_cert and http_key for renewd, or allow_plaintext if the network " +
				"itself is encrypted. Replace the secret that was sent."},
		{codeNotBelieved, 403, "The message is not believed",
			"Its signature, its time or its addressee is wrong. Nothing was done. " +
				"renewd sources list counts such messages."},
		{codeNotFound, 404, "There is nothing under this path",
			"The paths are in /v1/openapi.json."},
		{schema.TokenUnknownUser, 404, "The user is not known",
			"No login of this user was confirmed yet, or the user was erased. Publish a login."},
		{schema.TokenUnknownProvider, 404, "The provider is not known",
			"The provider's id is not among those in renewd's settings."},
		{schema.TokenSignIn, 409, "The user must sign in again",
			"The member reason says why. Send the user to your login; " +
				"its tokens go to POST /v1/logins."},
		{schema.TokenSignedOut, 409, "The user was signed out",
			"The session was ended on request. Send the user to your login."},
		{schema.TokenSuperseded, 409, "The store is older than what was published",
			"A backup was restored. An operator decides with renewd store " +
				"accept, or a login does."},
		{schema.TokenSuspended, 409, "The user is suspended",
			"The user was suspended by an operator, or by a client with the right admin. " +
				"Resuming the user ends that, and so does the user's next login."},
		{codeTooLarge, 413, "The body is too large", "A body has 64 KiB at most."},
		{codeLimited, 429, "Too many requests",
			"Wait for as long as Retry-After says. Wrong secrets are counted " +
				"by address and by client."},
		{codeInternal, 500, "Something is wrong in renewd", "The log says what."},
		{schema.TokenTryAgain, 503, "No token can be had now",
			"The provider is down or slow. Ask again after Retry-After; " +
				"no one is signed out by that."},
		{schema.TokenBusy, 503, "Too many callers wait", "Ask again after Retry-After."},
		{
			schema.TokenStoreDown,
			503,
			"The store does not answer",
			"Ask again after Retry-After. /readyz says what is down.",
		},
		{
			codeUnavailable,
			503,
			"renewd cannot do this now",
			"Ask again after Retry-After. /readyz says what is down.",
		},
	}
}

// problemPath is where the pages of the types are.
const problemPath = "/v1/problems/"

// kindOf finds a type of problem by its code; internal for an unknown code.
func kindOf(code string) kind {
	for _, k := range kinds() {
		if k.code == code {
			return k
		}
	}
	return kindOf(codeInternal)
}

// problem makes a problem of a type.
func problem(code, detail string) *Problem {
	k := kindOf(code)
	p := &Problem{
		Type:   problemPath + k.code,
		Title:  k.title,
		Status: k.status,
		Detail: detail,
		Code:   k.code,
	}
	if k.status == http.StatusServiceUnavailable || k.status == http.StatusTooManyRequests {
		p.RetryAfter = 1
	}
	return p
}

// wrongField is the problem of one part of a request.
func wrongField(location, message string) *Problem {
	return malformed(location+": "+message, location, message)
}

// malformed is the problem of one part of a request, with a detail of its own that says more.
func malformed(detail, location, message string) *Problem {
	p := problem(codeMalformed, detail)
	p.Fields = []FieldProblem{{Location: location, Message: message}}
	return p
}

// noToken is the problem made of a refusal of internal/tokens.
func noToken(no *schema.NoToken) *Problem {
	p := problem(no.Code, no.Message)
	p.Reason, p.LoginAt, p.Since = no.Reason, no.LoginAt, no.Since
	p.RetryAfter = max(p.RetryAfter, no.RetryAfterSeconds)
	return p
}

// ofCommand is the problem made of a command's error: a mistake of its publisher, or a command that
// could not be stored.
func ofCommand(err error) *Problem {
	if bad, ok := errors.AsType[*schema.Malformed](err); ok {
		return malformed(bad.Message, bad.Field, bad.Message)
	}
	return problem(codeUnavailable,
		"the command may not have been stored: send it again with the same Idempotency-Key")
}

// ownErrors has huma make its errors as Problems. huma keeps the maker in a variable of its
// package.
var ownErrors = sync.OnceFunc(func() {
	huma.NewError = func(status int, message string, errs ...error) huma.StatusError {
		return fromStatus(status, message, errs...)
	}
})

// fromStatus is the problem for an error of huma's: a request that does not fit its description.
func fromStatus(status int, message string, errs ...error) *Problem {
	code := codeInternal
	switch status {
	case http.StatusBadRequest,
		http.StatusUnprocessableEntity,
		http.StatusUnsupportedMediaType,
		http.StatusNotAcceptable:
		code = codeMalformed
	case http.StatusRequestEntityTooLarge:
		code = codeTooLarge
	case http.StatusRequestTimeout:
		code = codeUnavailable
	}
	p := problem(code, message)
	for _, err := range errs {
		var d huma.ErrorDetailer
		if errors.As(err, &d) {
			detail := d.ErrorDetail()
			p.Fields = append(
				p.Fields,
				FieldProblem{Location: detail.Location, Message: detail.Message},
			)
		}
	}
	return p
}

// problemPage serves the page of one type.
func problemPage(w http.ResponseWriter, r *http.Request) {
	k := kindOf(r.PathValue("code"))
	if k.code != r.PathValue("code") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%s (%d)\n\n%s\n\n%s\n", k.code, k.status, k.title, k.help)
}
