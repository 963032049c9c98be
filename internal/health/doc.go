// Package health keeps what all workers together know about one provider. Is the provider's refusal
// of a user to be believed, is the provider to be left alone for a while, and how many calls a
// second may it get? Each answer is a record in one bucket, changed by compare-and-swap, so that it
// outlives every worker.
//
// The rules are pure: State.Next says what a record becomes by the counted answers, and
// State.Withhold, State.Limit and State.PausedUntil what follows from a record and the time.
// Nothing follows from which worker wrote the record, or whether the answer to the write arrived.
// Every worker sets the throttle that follows from the record, and any worker that finds an untold
// event publishes the event.
//
// Three things are told apart. An outage (the provider fails, throttles or refuses our client)
// opens a circuit breaker: the provider's consumer is paused for all workers, then one renewal at a
// time tries whether the provider is back. A doubt (most users are refused, as with a wrong client
// id or a restored database) holds verdicts back and leaves all other users alone. Presentations
// wait only while no user is renewed, and presentations of newer logins not even then. A budget
// counts calls.
//
// The package never sees a token or a user, and never decides about either. A Guard and a Budget
// are safe for concurrent use, and any number of workers share the records, also over restarts.
package health
