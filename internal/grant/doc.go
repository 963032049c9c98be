// Package grant owns the rules of a renewal: what a grant is, when it is due, what to do with it
// now, what a provider's answer means, and what the next record looks like. It declares the Store
// contract that keeps grants.
//
// It is pure: no network, no clock (now is an argument), no randomness (a draw in [0,1) is an
// argument), no logger and no goroutine. All values may be copied; nothing here is shared.
package grant
