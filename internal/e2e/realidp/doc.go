// Package realidp holds the tests that run the built renewd against identity providers that others
// wrote: Dex on PostgreSQL and the example server of zitadel/oidc, in the versions that go.mod pins,
// and Debian's Glewlwyd and Ory Hydra where those are installed.
//
// It has no code of its own and nothing imports it. It is a module of its own, so that what the
// providers require stays out of the product. Each provider stands behind a recorder that keeps
// every answer and every presentation of a refresh token. Another test asks them everything that can
// be asked, and holds the answers against internal/idp/testdata/answers, or writes them there with
// the flag -update. The tests start processes (renewd, PostgreSQL, Glewlwyd) on free loopback ports
// and end every one they started, so they may run beside each other.
package realidp
