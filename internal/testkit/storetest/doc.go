// Package storetest proves the contract of grant.Store. Run is the conformance suite that every
// adapter passes. Memory is an adapter in memory, for tests of packages that use a store.
//
// The package never ships: only tests import it. Run may be called from parallel tests if each has
// a separate store.
package storetest
