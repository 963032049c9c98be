// Package systemtest puts renewd together in one process, on a real NATS server, a real store and
// the HTTP stand-in, for tests of what only shows when many workers share many grants.
//
// It never ships: it has only this text and tests. The whole program, as a process, is tested in
// internal/e2e.
package systemtest
