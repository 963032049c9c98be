// Package stream owns renewd's JetStream side: the streams, buckets and consumers as values, how
// they are brought about on a server (Plan, Apply), the engine that arms timers, wakes grants, puts
// logins off, publishes outcomes and parks pairs (Engine), and the repair of timers that got lost
// (Reconciler).
//
// It never looks into a token, never decides whether a grant is due, and never takes the stream's
// word for the truth: the store's record is the truth, the store's claim is the lock, and
// everything in RENEWALS but a login that was put off can be thrown away and rebuilt.
//
// What waits for a grant is never lost to what comes later: a timer is armed by one rule of
// precedence (grant.Timer.Over), a request adds to what waits (Engine.Request), a newer login stays
// before an older one (Engine.DeferLogin), and the Reconciler replaces nothing that waits. All of
// that is compare-and-swap on the last sequence of a subject. A firing knows no such condition, so
// a command that comes becomes due on a subject where no timer fires, and one that was put off on
// another. Engine.Wake alone replaces whatever there is: it is for an operator's word.
//
// A message that somebody else wrote, or that is damaged, is taken for none and told to the log
// once: it stops nobody.
//
// Time is the NATS server's, by Engine.Now. Publishes are not buffered while there is no connection
// (ConnectOptions).
//
// Every method is safe for concurrent use. One that publishes returns once the server has
// acknowledged it, so what returned nil is stored; concurrent callers share round trips.
package stream
