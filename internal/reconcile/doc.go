// Package reconcile walks the store, beside the renewals, and repairs what the streams alone do not
// show: lost timers (Reconciler), records sealed with an old key (Resealer), grants that still wait
// although a provider's trouble is over (Waker), and a restored store (Compare).
//
// The package never looks into a token, never spends a token and never publishes an outcome. The
// store's record is the truth. A message waiting in the streams is never replaced. A lost timer is
// put back under one cause, however often the loss is seen, so the renewal has one outcome.
//
// Any number of workers run a Reconciler and a Resealer. A lease for each, a compare-and-swap key
// in the bucket of providers, lets one worker walk at a time. Waker and Compare may run anywhere,
// also at once.
package reconcile
