// Package hook takes messages about users from other systems, and turns them into commands:
// webhooks as Standard Webhooks 1.0.0 has them (PropelAuth's among them), logout tokens (OpenID
// Connect Back-Channel Logout 1.0) and security event tokens (RFC 8417, pushed as RFC 8935 has it).
//
// The package owns the sources of these kinds: the verification of a message, its action, whether
// it was taken before, and the figures of each source. A message is believed only once its
// signature, its time and its addressee are right. Even then it wakes a user, so that the provider
// is asked, and ends no session and erases no user unless the settings of its source say so. A
// message about a user who is not in the store becomes no command.
//
// The package never calls a provider with a token, and never writes to the store. No error, log,
// figure or answer quotes a message. A Door is safe for concurrent use.
package hook
