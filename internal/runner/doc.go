// Package runner takes messages from a durable pull consumer and hands the messages to a handler
// (Runner). Every consumer of renewd stands on this package, and so does a subscription of package
// consumers with a durable.
//
// The package owns three things: the lease on a message, renewed by heartbeats while the handler
// works; the verdict that a handler returns as an error (Retry, Reject), and the answer to the
// server that follows; and the drain of the messages being handled when a worker stops. The package
// never looks into a message's meaning, never creates a stream, and never logs or traces a body.
// Delivery is at least once.
//
// A Runner handles up to Config.Slots messages at a time, each in one goroutine, so handlers must
// be safe for concurrent use. Run waits for all its goroutines before Run returns.
package runner
