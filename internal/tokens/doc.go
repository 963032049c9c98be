// Package tokens hands out fresh access tokens of users. The refresh token never leaves renewd: a
// service asks here instead of keeping a copy that goes stale at the next renewal.
//
// There is one operation, Source.Get. Every door (NATS, HTTP) is a thin layer on Get. Its contract:
//
//   - A token that is good for long enough is answered from one load of the record: no claim, no
//     provider call, no event, no write. So reads go on while NATS or the provider is down. A
//     user's callers who come while the record is being read share the next load.
//   - Else a renewal is asked for, as a user.refresh_due does, with the least validity that is
//     wanted, and Get waits for the renewal. All callers of one user share one wait and one
//     renewal. A caller that hangs up ends its own wait, never the exchange with the provider.
//   - A token that lives, but not for as long as was asked for, is answered when no better token
//     can be had: Token.Short says why. The least validity is capped at nine tenths of a token's
//     life.
//   - Else the error is, or wraps, a *schema.NoToken: its Code says what to do, its RetryAfter when
//     to ask again. A signed-out, superseded or suspended user never gets an old token.
//   - Asking signs no user out: a read can only bring a renewal forward, and a refusal of the
//     provider is weighed as in any other renewal. A user without a refresh token keeps the access
//     token to its end.
//   - Only tokens the provider has confirmed are handed out, never the token of a candidate. For a
//     user who has only a candidate, Get waits for the candidate.
//   - Waits are bounded: in time, in users of one provider, and in callers. One user's callers
//     cannot keep another user's callers from waiting, nor one provider's callers another's.
//   - Where an audit is asked for, the first read of a version by a reader is told, apart from the
//     read, and no read after it. So reads that need no renewal publish next to nothing, however
//     many there are.
//
// The package judges a record by pure rules (judge.go), never presents a refresh token, and writes
// neither to the store nor to a stream itself: Config.Asker, Config.Tell and Config.Save do. The
// door decides who may read before it calls Get. A Source is safe for concurrent use.
package tokens
