// Package e2e holds the tests that look at renewd from outside: the built binary against an OpenID
// provider that is not ours, the permission lists of deploy/nats on a real server, and the
// Dockerfile and docker-compose.yml.
//
// It has no code of its own and nothing imports it. Its tests start processes (node, renewd,
// PostgreSQL) on free loopback ports and end every one they started, so they may run beside each
// other.
package e2e
