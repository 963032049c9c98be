// Package e2e holds the tests of renewd from outside. They run the built binary against another
// project's OpenID provider, the permission lists of deploy/nats on a real server, and the
// Dockerfile and docker-compose.yml.
//
// The package has only tests, and no package imports it. Its tests start processes (node, renewd,
// PostgreSQL) on free loopback ports and end every process started by the tests, so test runs may
// go side by side.
package e2e
