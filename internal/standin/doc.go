// Package standin is a stand-in for a provider: an identity provider like PropelAuth, with one-time
// refresh tokens. On purpose it says and does all that real providers do by accident. renewd's dev
// command, its tests and its benchmarks run against the stand-in.
//
// The package owns the truth that tests compare with: the current token, the count of each token's
// presentations, and the most presentations of one session ever in flight at once. The stand-in has
// no login pages, and nothing else for a user's browser. It is no place for real users: it keeps
// everything in memory and trusts every caller.
//
// A Server is safe for concurrent use.
package standin
