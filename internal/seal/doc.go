// Package seal owns renewd's keys: the keyring, sealed logins, and encryption at rest.
//
// A login is sealed by whoever publishes it, as a compact JWE (RFC 7516) with ECDH-ES on P-256 and
// A256GCM to the keyring's public key, so tokens cross the stream unreadable to everybody but
// renewd. A pair at rest is AES-256-GCM under a key of its own, derived with HKDF-SHA256 from a
// master key and a random salt, so that no key ever encrypts twice.
//
// One key of each kind seals, every key opens. A fresh key only opens at first, until each worker
// has it and it is promoted; a key is dropped only when nothing sealed with it is left. The package does no I/O, never logs, and its errors never quote
// what it was given. A Keyring never changes once made (Rotate and Promote return a new one), so all its
// methods are safe for concurrent use.
package seal
