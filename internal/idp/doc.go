// Package idp calls identity providers: refresh, userinfo, discovery, revocation. It sorts every
// answer into the classes of package grant, by the table in classify.go.
//
// It is a client of its own on net/http because the ready ones are not safe for this job: they send
// a failed refresh twice, follow redirects with the refresh token in hand, take a 200 with an error
// for a success, and quote bodies in errors. Here a refresh is one POST, never redirected, with one
// client authentication and a capped body. It is repeated only where the answer says invalid_client
// and another way or secret is left to try, and after that answer. No error holds a token, a body, or
// anything of a URL but its host and path.
//
// The package stores nothing and decides nothing about a user. A Provider is safe for concurrent
// use.
package idp
