// Package api is renewd's HTTP interface for services that have no NATS client: version 1, under
// /v1.
//
// Each handler is a thin layer on an operation that exists without HTTP. A command is published as
// any service publishes it, an outcome is read from the stream of outcomes, a token comes from
// internal/tokens. The package owns the rights of callers (see internal/clients), the form of
// requests, answers and problems (RFC 9457), and the OpenAPI 3.1 description, made from the same Go
// types as the answers.
//
// No answer holds a token other than the requested token, and no log and no metric holds a token.
// Every answer says not to store it. A caller that hangs up ends its own wait, never a renewal. A
// listener that does not read is cut off, and resumes at its place. Handlers are safe for
// concurrent use.
package api
