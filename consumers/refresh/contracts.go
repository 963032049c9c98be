package refresh

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Client calls a provider. Errors are *grant.Fault, grant.ErrAccessRefused or
// grant.ErrSubjectMismatch.
type Client interface {
	Refresh(ctx context.Context, refresh secret.Value) (grant.Tokens, error)
	UserInfo(ctx context.Context, access secret.Value, user string) (schema.Profile, error)
	// Revoke ends a refresh token and all tokens issued with it (RFC 7009).
	Revoke(ctx context.Context, refresh secret.Value) error
}

// IDTokens reads the profile of user from the ID token issued with an access token. answered says
// that both tokens came in one answer of the provider, and not with a login. Errors are the errors
// of Client.UserInfo. grant.ErrAccessRefused says that this ID token proves nothing about this
// access token, and that a refresh may bring a good ID token.
type IDTokens interface {
	Identify(
		ctx context.Context, id, access secret.Value, answered bool, user string,
	) (schema.Profile, error)
}

// Limiter paces the calls to a provider. Wait returns when another call may be made, or the
// context's error.
type Limiter interface {
	Wait(ctx context.Context) error
}

// Throttle is how long all workers together leave a provider alone.
type Throttle interface {
	// Wait is how long calls with the tokens of a login of this time have to wait; 0: not at all.
	Wait(login time.Time) time.Duration
	// WaitToPresent is the same for a refresh token, which may have been refused before. Tokens of
	// newer logins, and tokens never refused, may have a shorter wait.
	WaitToPresent(login time.Time, refused bool) time.Duration
}

// Guard is what all workers together know about a provider's health.
type Guard interface {
	Throttle
	// Report counts how a call ended; f is nil for a success. again tells that this user was
	// refused before.
	Report(f *grant.Fault, again bool)
	// Renewing reports whether users were renewed lately.
	Renewing() bool
	// Withhold says why a refusal of a token refused before, with the verdict v, is not to be
	// believed now; empty: the refusal is believed.
	Withhold(ctx context.Context, v grant.Verdict) (reason string, err error)
}

// Provider is the part of a provider that this package needs.
type Provider struct {
	Client  Client
	Policy  grant.Policy // zero fields take their defaults
	Limiter Limiter      // nil: no limit
	// Guard: nil if every confirmed refusal is believed, and the provider is never left alone.
	Guard Guard
	// IDTokens reads profiles from ID tokens, at a provider without a userinfo endpoint; nil:
	// Client is asked.
	IDTokens IDTokens
	// RevokeReplaced: the refresh token that a newer login replaced is revoked. Only for a provider
	// where a revocation ends no other session of the user.
	RevokeReplaced bool

	// named is when userinfo last named a user to this process, in Unix nanoseconds by the stream's
	// clock.
	named *atomic.Int64
}

// Timers keeps one timer per grant: arming replaces the timer before.
type Timers interface {
	Arm(ctx context.Context, k grant.Key, at time.Time, w grant.Work) error
}

// Outcomes is the log of the published outcomes of users.
type Outcomes interface {
	// PublishMarked stores an outcome with the mark of its record.
	PublishMarked(ctx context.Context, e schema.Event, m grant.Mark) error
	// Published is the latest mark among the user's outcomes.
	Published(ctx context.Context, k grant.Key) (grant.Mark, error)
	// Newest is the stream's latest mark of the grant's record, by outcomes, timers and parked
	// pairs.
	Newest(ctx context.Context, k grant.Key) (grant.Mark, error)
	// Answered reports whether the outcome with this id is the user's last of its type.
	Answered(ctx context.Context, k grant.Key, id string) (bool, error)
	// AnsweredSince reports whether the outcome with this id is among all outcomes of the user
	// since a time.
	AnsweredSince(ctx context.Context, k grant.Key, id string, since time.Time) (bool, error)
}

// Parking is the place for pairs that the store would not take.
type Parking interface {
	Park(ctx context.Context, k grant.Key, p grant.Parcel) (sequence uint64, err error)
	Parked(ctx context.Context, k grant.Key) (p grant.Parcel, found bool, err error)
	// Unpark removes the pair parked with this sequence, and no other.
	Unpark(ctx context.Context, k grant.Key, sequence uint64) error
}

// Logins is the queue of accepted logins.
type Logins interface {
	// LoginWaits reports whether an accepted login of the user is not stored yet.
	LoginWaits(ctx context.Context, k grant.Key) (bool, error)
}
