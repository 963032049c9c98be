// Package consumers owns how messages are taken from JetStream: the Runner that every consumer of
// renewd stands on, and, for any service, Subscribe (react to outcomes), Replay (read them back for
// an audit) and Await (publish a command and wait for its answer).
//
// It never looks into what a message means, never creates a stream, and never logs or traces a
// body. Delivery is at least once, everywhere: a subscriber that keeps state compares the version
// in an event's data with the one it knows and ignores what is older.
//
// A Runner handles up to Config.Slots messages at a time, each in one goroutine; handlers must be
// safe for concurrent use. Every function here waits for all goroutines it starts before it
// returns.
package consumers
