// Package natsconn says how to connect to the NATS servers of the settings: as options for the NATS
// client, from the settings and from a context of the nats CLI.
//
// The package makes no connection itself. Passwords and tokens are not offered to a server without
// TLS, unless the settings allow it. Nothing is buffered while a connection is away: a publish then
// fails at once.
package natsconn
