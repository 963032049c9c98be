// Package topology describes, as values, what renewd needs on a NATS server: the streams, the
// buckets, the durables, and the subjects inside renewd (Topology). Plan compares a server with a
// Topology, and Apply makes the server match.
//
// The package never publishes and never reads a message. It loses stored messages only with
// Changes.Force: Changes.Refusal names the refused changes. A change that a server cannot make is
// always refused.
//
// Every function is safe for concurrent use. Two callers that apply the same Topology at once reach
// the same result.
package topology
