// Package storetest proves the contract of grant.Store: Run is the conformance suite that every
// adapter passes, Memory an adapter in memory for tests of what stands on a store.
//
// It never ships: only tests import it. Run may be called from parallel tests, each with a store of
// its own.
package storetest
