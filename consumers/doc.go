// Package consumers is for any service that listens to renewd: Subscribe reacts to outcomes, Replay
// reads outcomes back for an audit, and Await publishes a command and waits for its answer.
//
// The package never looks into the meaning of an event, never creates a stream, and never logs or
// traces a body. Delivery is at least once, everywhere: a subscriber that keeps state compares the
// version in an event's data with the known version and ignores older events.
//
// With Subscription.Concurrency above 1 the function of a subscription must be safe for concurrent
// use. Every function here waits for all its goroutines before it returns.
package consumers
