// Package schema holds renewd's public contracts: the subjects services publish to and subscribe
// on, the events that travel there, their CloudEvents envelope, and the JSON Schema and AsyncAPI
// files that describe them.
//
// It never touches the network, a clock or a store, and imports nothing but the standard library,
// so any service may import it. All its functions are pure and safe for concurrent use.
//
// Contracts evolve by adding optional fields only. Readers ignore fields they do not know, and
// every enumeration (reason, type) is open: treat a value you do not know as "other".
package schema
