// Package mail tells users by e-mail that they must sign in again, once for each end of a session.
//
// The package answers for the mails that users get: nothing to a user who has signed in again
// meanwhile, no header that a profile makes up, and at most so many mails an hour. Further mails
// are held back, and the operator gets a digest of them. TLS is required unless the settings allow
// plain text. Package sink does all retries. The package's errors quote nothing of the mail
// server's but its code.
package mail
