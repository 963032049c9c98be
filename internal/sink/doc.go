// Package sink takes outcomes to places outside: a webhook, an app's table. The package owns the
// parts common to all kinds of sinks: the durable, the order, the retries, the dead letters, the
// figures.
//
// One process at a time runs a sink, under a lease in the bucket of sinks. The process takes the
// outcomes of the sink's durable and hands each to a Target, in the order of each user. A failed
// outcome that may itself be at fault waits in the bucket, and is tried again on a schedule. Later
// outcomes of the same user wait behind it, and other users' outcomes go on. If the target as a
// whole fails, all outcomes wait in the stream, and the target is tried with one outcome at a time.
//
// Delivery is at least once. The package never looks into an outcome, holds no token, and never
// slows another sink, another user or a renewal.
package sink
