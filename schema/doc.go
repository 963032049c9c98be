// Package schema holds renewd's public contracts: the subjects services publish to and subscribe
// on, the events on these subjects, their CloudEvents envelope, and the JSON Schema and AsyncAPI
// files.
//
// The package never touches the network, a clock or a store, and imports nothing but the standard
// library, so any service may import it. All its functions are pure and safe for concurrent use.
//
// Contracts evolve by adding optional fields only. Readers ignore unknown fields, and every
// enumeration (reason, type) is open: treat an unknown value as "other".
package schema
