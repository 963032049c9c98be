// Package pull speaks JetStream's pull protocol: Puller asks a consumer for messages, and tells a
// stored message from a status of the server.
//
// The package never acknowledges a message and never makes a consumer. Package runner uses Puller
// with acks, package consumers without.
//
// A Puller is for one goroutine at a time.
package pull
