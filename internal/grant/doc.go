// Package grant owns the rules of a renewal: the definition of a grant, when a grant is due, what
// to do with it now, the meaning of a provider's answer, and the content of the next record. The
// package declares the Store contract for keeping grants.
//
// The package is pure: no network, no clock (now is an argument), no randomness (a draw in [0,1) is
// an argument), no logger and no goroutine. All values may be copied; nothing here is shared.
package grant
