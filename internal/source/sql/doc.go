// Package sql turns the sessions in an app's own table into logins: the import of the sessions
// there, and a watch for new sessions.
//
// A row is a login if its refresh token differs from the token last taken from the row. A mark for
// each user in the bucket of sources keeps that token's fingerprint, under a keyed hash of the
// user's id. So a row that changed for any other reason, by a sink say, is no login.
//
// The package only reads the table, publishes through the SDK, and presents no token to a provider.
// A row is taken at least once, and a login that comes twice counts once. One process at a time
// watches a table, under a lease. A row that cannot be read is counted, and keeps no other row from
// being taken. Errors and reports name rows by their id in the app's table, and hold no token.
package sql
