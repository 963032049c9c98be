// Package idptest is a stand-in for PropelAuth: an identity provider with one-time refresh tokens
// that says and does on purpose what real ones do by accident. renewd's dev command, its tests and
// its benchmarks run against it.
//
// It owns the truth that tests compare with: which token is current, how often one was presented,
// how many presentations of one session were ever in flight at once. It checks nothing that only a
// user's browser would see (no login pages), and is no place for real users: it keeps everything in
// memory and trusts whoever reaches it.
//
// A Server is safe for concurrent use.
package idptest
