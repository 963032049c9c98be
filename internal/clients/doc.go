// Package clients knows the services that use renewd over HTTP: the name of each, its rights and
// providers, and a digest of its secret.
//
// The secret itself is shown once, when the client is made, and is stored nowhere. Records lie in a
// KV bucket that every worker watches, so each worker learns of an added or removed client within
// moments. While NATS is away the workers go on with the clients they know. The package decides who
// a caller is and what that caller may do; it never looks at a request. A Registry is safe for
// concurrent use.
package clients
