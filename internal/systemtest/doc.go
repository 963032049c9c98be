// Package systemtest runs renewd's daemon several times in one process, on a real NATS server, a
// real store and the HTTP stand-in, for tests of faults that show only when many workers share many
// grants. The wiring is internal/daemon's: the tests only choose the settings.
//
// The package never ships: it has only this text and tests. The whole program, as a process, is
// tested in internal/e2e.
package systemtest
