// Package postgres keeps grants in PostgreSQL, in a schema named renewd of any database.
//
// Concurrent calls share statements: while one statement is under way, what arrives is collected
// and goes out together in the next, so a busy store does the work of hundreds of rows with one
// commit and an idle one waits for nothing. A row that fails a compare-and-swap never fails its
// neighbours.
//
// The package never calls a provider and never decides anything about a grant. A Store is safe for
// concurrent use, also from many processes; claims run by the database's clock.
package postgres
