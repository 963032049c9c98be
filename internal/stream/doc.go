// Package stream is the engine on renewd's streams (Engine): it arms timers, wakes grants, puts
// logins off, publishes outcomes, parks pairs and erases users. Package topology says which streams
// there are, and package reconcile repairs lost timers.
//
// The engine never looks into a token, never decides whether a grant is due, and never takes the
// stream's word for the truth. The store's record is the truth, the store's claim is the lock, and
// everything in RENEWALS but a login put off can be thrown away and rebuilt.
//
// Work waiting for a grant is never lost to later work. A timer is armed by one rule of precedence
// (grant.Timer.Over), a request adds to the waiting work (Engine.Request), a newer login stays
// before an older login (Engine.DeferLogin), and Engine.WakeLost replaces no waiting message. All
// these methods compare-and-swap on the last sequence of a subject. A firing timer knows no such
// condition. So an arriving command becomes due on a subject where no timer fires, and a command
// put off becomes due on another subject. Only Engine.Wake replaces any waiting message: it carries
// out an operator's word.
//
// A message of another writer, or a damaged message, counts as no message and is logged once. Such
// a message stops no user.
//
// Time is the NATS server's, by Engine.Now. Publishes are not buffered while there is no connection
// (ConnectOptions).
//
// Every method is safe for concurrent use. A publishing method returns once the server has
// acknowledged the message, so nil means stored. Concurrent callers share round trips.
package stream
