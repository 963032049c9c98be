// Package publishers is the SDK for services that tell renewd about their users: a user signed in
// (Login), or a user's profile or tokens are wanted fresh (RefreshDue).
//
//	p, err := publishers.New(nc, publishers.WithSource("/shop"))
//	…
//	_, err = p.Login(ctx, "propelauth", userID, publishers.Tokens{
//		AccessToken:  token.AccessToken,
//		RefreshToken: token.RefreshToken,
//		ExpiresIn:    30 * time.Minute,
//	})
//
// Login seals the tokens to renewd's public key before the tokens leave the process, and fetches
// the key by itself. Each call returns when the stream has stored the event. The result is
// published as an outcome (package consumers). The package keeps no token, reads no setting from
// the environment, and logs nothing.
//
// A Publisher is safe for concurrent use.
package publishers
