// Package realidp holds the tests that run the built renewd against identity providers not written
// by this project. The providers are Dex on PostgreSQL and the example server of zitadel/oidc, in
// the versions that go.mod pins, and Debian's Glewlwyd and Ory Hydra where installed.
//
// The package has only tests, and no package imports it. It is a separate module, so the providers'
// dependencies stay out of the product. Each provider stands behind a recorder that keeps every
// answer and every presentation of a refresh token. Another test sends the providers every possible
// question. The test compares the answers with internal/idp/testdata/answers, or writes the answers
// there with the flag -update. The tests start processes (renewd, PostgreSQL, Glewlwyd, Hydra) on
// free loopback ports and end every process started by the tests, so test runs may go side by side.
package realidp
