package grant

import (
	"errors"
	"fmt"
	"github.com/renewd/renewd/internal/secret"
	"time"
)

// Class sorts the failures at a provider by what each allows renewd to do next. Only Permanent may
// ever sign a user out.
type Class string

// The classes, see the table in internal/idp. An unrecognised failure is Unknown, never Permanent.
const (
	Unsent    Class = "unsent"    // nothing was sent: retry freely
	Ambiguous Class = "ambiguous" // sent, no usable answer: maybe spent, present again soon
	Throttled Class = "throttled" // the provider asks for patience, for all users
	Config    Class = "config"    // the provider refuses our settings, not the user
	Permanent Class = "permanent" // the provider says: this grant is dead
	Unknown   Class = "unknown"   // refused in unknown words
)

// Classes lists all classes.
func Classes() []Class { return []Class{Unsent, Ambiguous, Throttled, Config, Permanent, Unknown} }

// Fault is a provider call that did not succeed. A Fault carries no token, and nothing of a
// response body except Detail.
type Fault struct {
	Class      Class
	Op         string        // "refresh", "userinfo", "id_token", "discovery", "revoke"
	Status     int           // HTTP status, 0 if there was no answer
	Code       string        // the provider's error code, cut to 64 printable characters
	Reason     string        // for Permanent: a reason of user.reauth_required
	RetryAfter time.Duration // 0: the provider did not say
	Err        error         // cause, already free of secrets; may be nil
	// Detail is the provider's text about the fault for a developer: its error_description and
	// error_uri (RFC 6749 section 5.2), on one line of at most 200 bytes, without anything renewd
	// sent. Detail may name a user. It is for a debug log and for the operator at a terminal: no
	// error, event or stored record has it.
	Detail string
}

func (f *Fault) Error() string {
	s := fmt.Sprintf("%s: %s", f.Op, f.Class)
	if f.Status != 0 {
		s += fmt.Sprintf(": status %d", f.Status)
	}
	if f.Code != "" {
		s += ": " + f.Code
	}
	if f.Err != nil {
		s += ": " + f.Err.Error()
	}
	return s
}

func (f *Fault) Unwrap() error { return f.Err }

// Errors of a userinfo call beside a *Fault.
var (
	// ErrAccessRefused: 401, the access token is not accepted (any more).
	ErrAccessRefused = errors.New("userinfo: access token refused")
	// ErrSubjectMismatch: the answer is about another user. Never store such an answer.
	ErrSubjectMismatch = errors.New("userinfo: answer is about another user")
)

// ErrNoRevocation: the provider names no endpoint to revoke tokens at (RFC 7009), and neither do
// the settings.
var ErrNoRevocation = errors.New("no revocation endpoint is known, so tokens stay good until " +
	"they expire: set revoke_url if the provider has one")

// Tokens is a provider's answer to a refresh. A zero Refresh means: keep the old refresh token (RFC
// 6749 section 6). A zero Access beside a Refresh means: the answer had no usable access token, so
// the access token is to be taken for expired.
type Tokens struct {
	Access    secret.Value
	Refresh   secret.Value
	ID        secret.Value
	Scope     string
	ExpiresIn time.Duration // 0: the provider did not say
	SentAt    time.Time     // just before the request, by the workers' clock, set by the caller
}
