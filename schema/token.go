package schema

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// NoToken says why a caller got no access token, in a form a program can act on. It is the error of
// every door tokens are read at, and travels as JSON where the door is remote.
type NoToken struct {
	// Code tells the remedy, see the constants. The list is open.
	Code string `json:"code"`
	// Message is for people. It holds no token and no word of the provider's.
	Message string `json:"message"`
	// Reason is the reason of the user.reauth_required or user.refresh_failed behind it, if any.
	Reason string `json:"reason,omitempty"`
	// LoginAt is when the user last signed in, as far as the provider confirmed the login. Zero:
	// unknown.
	LoginAt time.Time `json:"login_at,omitzero"`
	// Since is when the user's tokens ended. Zero: the tokens did not end, or the end is unknown.
	Since time.Time `json:"since,omitzero"`
	// RetryAfterSeconds is how long to wait before asking again. 0: asking again is no use.
	RetryAfterSeconds int `json:"retry_after_seconds,omitempty"`
}

// Codes of a NoToken.
const (
	// TokenUnknownUser: no login of this user was ever confirmed, or the user was erased.
	TokenUnknownUser = "unknown_user"
	// TokenUnknownProvider: the provider is not in renewd's settings.
	TokenUnknownProvider = "unknown_provider"
	// TokenSignIn: the user must sign in again. Reason, LoginAt and Since say why and since when.
	TokenSignIn = "sign_in_again"
	// TokenSignedOut: the user was signed out on request.
	TokenSignedOut = "signed_out"
	// TokenSuperseded: the store is older than the published outcomes, as after a restored backup.
	// An operator decides, or a login.
	TokenSuperseded = "superseded"
	// TokenSuspended: a user.suspend holds the grant, until a user.resume or the next login.
	TokenSuspended = "suspended"
	// TokenTryAgain: no token lives and no token came in time, as while the provider is down.
	TokenTryAgain = "try_again"
	// TokenBusy: too many callers wait already. Nothing was asked for.
	TokenBusy = "busy"
	// TokenStoreDown: renewd's store does not answer, or the record cannot be opened now.
	TokenStoreDown = "store_down"
	// TokenMalformed: the request is not well formed, the message says where.
	TokenMalformed = "malformed"
	// TokenForbidden: the caller may not read tokens of this provider.
	TokenForbidden = "forbidden"
)

// SignInAgain reports whether only a login of the user helps. It is false for TokenUnknownUser: the
// login of a user who has just signed in may be on its way.
func (n *NoToken) SignInAgain() bool { return n.Code == TokenSignIn || n.Code == TokenSignedOut }

// RetryAfter is RetryAfterSeconds as a duration.
func (n *NoToken) RetryAfter() time.Duration {
	return time.Duration(n.RetryAfterSeconds) * time.Second
}

// Error is the code and the message, the reason between them.
func (n *NoToken) Error() string {
	if n.Reason != "" {
		return n.Code + " (" + n.Reason + "): " + n.Message
	}
	return n.Code + ": " + n.Message
}

// The reasons why an access token may be good for less time than asked for. The list is open.
const (
	// ShortCapped: the caller asked for more time than the provider's tokens live. A caller that
	// wants up to nine tenths of their life gets renewed tokens.
	ShortCapped = "capped"
	// ShortDelayed: a renewal is under way, or failed in passing. This token lives meanwhile.
	ShortDelayed = "delayed"
	// ShortNoRefreshToken: the token cannot be renewed. When it ends the user must sign in again.
	ShortNoRefreshToken = "no_refresh_token"
)

// DefaultMinValid is how long an access token is good for at least, if a caller does not say.
const DefaultMinValid = 60 * time.Second

// TokenGet is the body of a request on token.get.<provider>.<user>. The body of the answer is an
// AccessToken, sealed to Key as a compact JWE (RFC 7516; ECDH-ES, A256GCM). With the headers
// TokenErrorCode and TokenError the body is a NoToken as JSON.
type TokenGet struct {
	// Key is the caller's public key as a JWK (RFC 7517): EC, P-256, made for this request alone.
	Key json.RawMessage `json:"key"`
	// MinValidSeconds is how long the token is to be good for at least, 0 to MaxMinValid. 0: any
	// live token. Left out: DefaultMinValid.
	MinValidSeconds *int `json:"min_valid_seconds,omitempty"`
}

// MaxTokenGet is the largest request, in bytes.
const MaxTokenGet = 2048

// Headers of an answer without a token, as in nats.go's micro services.
const (
	TokenErrorCode = "Nats-Service-Error-Code" // the Code of the NoToken
	TokenError     = "Nats-Service-Error"      // its Message
)

// AccessToken is the answer to a caller. Formatters and loggers show no token, its JSON does.
type AccessToken struct {
	AccessToken string    `json:"access_token"`
	TokenType   string    `json:"token_type"`
	Scope       string    `json:"scope,omitempty"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"` // zero: the provider gave the token no end
	Version     int64     `json:"version"`             // of the user's record, as in outcomes
	// Short says why the token is good for less time than asked for, see the constants. Empty: the
	// token is good for as long as asked for.
	Short string `json:"short,omitempty"`
}

const redactedToken = "[redacted access token]"

// Format prints a placeholder, whatever the verb.
func (t AccessToken) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redactedToken)) }

// LogValue is a placeholder.
func (t AccessToken) LogValue() slog.Value { return slog.StringValue(redactedToken) }

const tokenGet = "token.get"

// TokenGet returns the subject of a request for a user's access token, as its sender publishes the
// request. It panics where Of does: check provider and user at the door.
func (s Subjects) TokenGet(provider, user string) string {
	a := Address{Type: UserRefreshDue, Provider: provider, User: user}
	if err := a.check(); err != nil {
		panic("schema: subject of a token request: " + err.Error())
	}
	return s.prefix + tokenGet + "." + provider + "." + EscapeUser(user)
}

// TokenGets returns the filter of token requests from one sender, or AnySender, also of requests
// with a malformed provider or user. An empty sender stands for requests without a sender.
func (s Subjects) TokenGets(sender string) string { return s.front(tokenGet, sender) + ".>" }

// ParseTokenGet is the inverse of TokenGet. The address also has the sender the NATS server put in,
// if any. A form that TokenGet would not write is refused. Its errors wrap ErrSubject.
func (s Subjects) ParseTokenGet(subject string) (Address, error) {
	rest, ok := strings.CutPrefix(subject, s.prefix)
	front := ""
	if from, some := strings.CutPrefix(rest, fromToken); some {
		front, rest, _ = strings.Cut(from, ".")
		front = fromToken + front + "."
	}
	about, is := strings.CutPrefix(rest, tokenGet+".")
	if !ok || !is {
		return Address{}, fmt.Errorf("%w: %s is no token request", ErrSubject, quote(subject))
	}
	a, err := s.Parse(s.prefix + front + string(UserRefreshDue) + "." + about)
	a.Type = ""
	return a, err
}
