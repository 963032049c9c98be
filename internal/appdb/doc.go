// Package appdb is the database of an app, PostgreSQL, MySQL or MariaDB, as sinks and sources meet
// it: how to connect, to quote a name, to read an error, and to read and write the encrypted texts
// of a Laravel app.
//
// The package makes no statement that reads or writes a row. Its errors show nothing of an address,
// of a row or of a key. Everything in the package is safe for concurrent use.
package appdb
