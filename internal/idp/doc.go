// Package idp calls identity providers: refresh, userinfo, discovery, revocation. The package sorts
// every answer into the classes of package grant, by the table in classify.go.
//
// The package has its own client on net/http because the ready clients are not safe for this job.
// They send a failed refresh twice, follow redirects with the refresh token, take a 200 with an
// error for a success, and quote bodies in errors. Here a refresh is one POST, never redirected,
// with one client authentication and a capped body. The POST is repeated only after an answer that
// refuses the client or calls the request malformed, and only if another way or secret is left to
// try. No error holds a token, a body, or anything of a URL but its host and path.
//
// The package stores nothing and decides nothing about a user. A Provider is safe for concurrent
// use.
package idp
