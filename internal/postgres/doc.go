// Package postgres keeps grants in PostgreSQL, in a schema named renewd of any database.
//
// Concurrent calls share statements. Calls that arrive while a statement is under way go out
// together in the next statement. So a busy store does the work of hundreds of rows with one
// commit, and an idle store waits for nothing. A row that fails a compare-and-swap never fails its
// neighbours.
//
// The package never calls a provider and never decides anything about a grant. A Store is safe for
// concurrent use, also from many processes. Claims run by the database's clock.
package postgres
