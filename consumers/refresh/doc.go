// Package refresh is the consumer of due renewals: it owns the order of effects around one renewal
// of one grant.
//
//	load → tell → decide → claim → present → save the pair → profile → save → publish → arm → (the runner acks)
//
// A login that is not proven yet is worked on as the grant's candidate, beside what is proven: the
// same steps, on the other side of the record. Whoever meets an outcome of earlier work that was
// perhaps never published publishes it first.
//
// The rules are internal/grant's, the calls go through small interfaces declared here. The package
// never presents a refresh token without a claim of its own on the grant, never does anything
// between a provider's answer and the save of the pair, and never acknowledges a message: it
// returns a verdict and the runner does.
//
// A Consumer is safe for concurrent use, by many messages of one process and by many processes:
// what keeps two workers off one grant is the store's claim, nothing in memory.
package refresh
