// Package guard keeps what all workers together know about one provider: is its refusal of a user
// to be believed, is it to be left alone for a while, and how many calls a second may it get. Each
// of it is a record in one bucket, changed by compare-and-swap, so that it outlives every worker.
//
// The rules are pure: State.Next says what a record becomes by what was counted, and State.Hold,
// State.Limit and State.PausedUntil what follows from a record and the time. Nothing follows from
// who wrote the record, or whether the answer to the write arrived: every worker sets the brake
// that follows, and whoever finds something untold tells it.
//
// Three things are told apart. An outage (the provider fails, throttles or refuses our client)
// opens a circuit breaker: the provider's consumer is paused for all workers, then one renewal at a
// time tries whether it is back. A doubt (most users are refused, as with a wrong client id or a
// restored database) holds verdicts back and leaves everybody else alone; only while nobody at all
// is renewed do presentations wait, and those of newer logins not even then. And a budget counts
// calls.
//
// The package never sees a token or a user, and never decides about one. A Guard and a Budget are
// safe for concurrent use, and any number of workers share the records, also over restarts.
package guard
