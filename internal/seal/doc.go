// Package seal owns renewd's keys: the keyring, sealed logins, and encryption at rest.
//
// A login is sealed by its publisher, as a compact JWE (RFC 7516) with ECDH-ES on P-256 and A256GCM
// to the keyring's public key, so only renewd can read the tokens in the stream. A pair at rest is
// AES-256-GCM under its own key, derived with HKDF-SHA256 from a master key and a random salt, so
// no key ever encrypts twice.
//
// One key of each kind seals, every key opens. A fresh key only opens at first, until each worker
// has the key and it is promoted. A key is dropped only when nothing sealed with it is left. The
// two kinds do not depend on each other, so a keyring may have keys of one kind only.
//
// The package does no I/O and never logs, and its errors never quote their input. A Keyring never
// changes once made (Rotate and Promote return a new Keyring), so all its methods are safe for
// concurrent use.
package seal
