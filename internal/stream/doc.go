// Package stream owns renewd's JetStream side: the streams, buckets and consumers as values, how they are brought about on
// a server (Plan, Apply), the engine that arms timers, wakes grants, publishes outcomes and parks pairs (Engine), and the
// repair of timers that got lost (Reconciler).
//
// It never looks into a token, never decides whether a grant is due, and never takes the stream's word for the truth: the
// store's record is the truth, the store's claim is the lock, and everything in RENEWALS can be thrown away and rebuilt.
//
// Every method is safe for concurrent use. One that publishes returns once the server has acknowledged it, so what
// returned nil is stored; concurrent callers share round trips.
package stream
