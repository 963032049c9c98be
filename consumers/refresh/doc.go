// Package refresh is the consumer of due renewals. The package owns the order of effects around one
// renewal of one grant. A renewal is a loop over steps, and each step names the next:
//
//	load → tell → decide → claim → unpark → present → save → profile → keep → publish
//
// Then the runner acknowledges the message.
//
// A timer's first delivery usually begins with the claim, which loads the record too. A login that
// is not proven yet is handled as the grant's candidate, beside the proven pair: the same steps, on
// the other side of the record. An outcome of earlier work that was perhaps never published is
// published first, by the step tell.
//
// The rules are internal/grant's. The calls go through small interfaces declared here. The package
// never presents a refresh token without this worker's claim on the grant, never does anything
// between a provider's answer and the save of the pair, and never acknowledges a message: the
// package returns a verdict, and the runner acknowledges.
//
// A Consumer is safe for concurrent use, by many messages of one process and by many processes: the
// store's claim keeps two workers off one grant, nothing in memory does.
package refresh
