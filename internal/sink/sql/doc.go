// Package sql writes the store's facts about a user into an app's own table: access token, state,
// profile, as the settings map them to columns.
//
// The package answers for the app's rows. It updates the one row of a user, or none, and after an
// erasure all rows of the user. A row with a newer version already stays as it is. The package adds
// rows to a history only, and adds and deletes rows in a table of organisations. It never writes a
// refresh token, and an access token only where the settings say so. Its errors have a database's
// code, and no message of a database, because a message may quote written values.
package sql
