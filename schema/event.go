package schema

import (
	"encoding/json"
	"time"
)

// Event is a CloudEvents 1.0 event with one of this package's payloads.
type Event struct {
	ID         string    // unique within Source
	Source     string    // a URI reference that names the publisher, "/billing" for instance
	Type       Type      // from the NATS subject
	Provider   string    // from the NATS subject
	User       string    // the CloudEvents subject; empty for provider events
	Sender     string    // from the NATS subject of a command: see Address
	Time       time.Time // when it happened, UTC
	DataSchema string    // address of the JSON Schema of Data
	Data       json.RawMessage
}

// Address returns what e is about.
func (e Event) Address() Address {
	return Address{Type: e.Type, Provider: e.Provider, User: e.User, Sender: e.Sender}
}

// Cause is the command, or renewd's own timer, that made an outcome happen.
type Cause struct {
	ID     string    `json:"id"`
	Type   Type      `json:"type"` // open: user.login, user.refresh_due, CauseTimer, CauseRepair, or user.forget for an erasure
	Source string    `json:"source,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	Reason string    `json:"reason,omitempty"`
	// Sender is the service whose NATS account the command came from, which the server says and not
	// the service. Empty: it came from renewd's own account, or the cause is no command. Source is
	// the publisher's own word.
	Sender string `json:"sender,omitempty"`
}

// The causes that are no command of a service: the grant's own timer, and the reconciler's repair
// of a lost one.
const (
	CauseTimer  Type = "renewal.timer"
	CauseRepair Type = "renewal.repair"
)

// Login is the data of user.login.
type Login struct {
	// Tokens is a compact JWE (RFC 7516; ECDH-ES on P-256, A256GCM) to renewd's public key. See
	// publishers.
	Tokens string `json:"tokens"`
}

// What a user.refresh_due wants.
const (
	WantProfile = "profile" // sync the profile, rotate the pair only if needed; the default
	WantTokens  = "tokens"  // rotate the pair now
)

// RefreshDue is the data of user.refresh_due. All of it is optional.
type RefreshDue struct {
	Reason          string `json:"reason,omitempty"`            // free text for the audit, 256 bytes at most
	Want            string `json:"want,omitempty"`              // WantProfile or WantTokens
	MinValidSeconds int    `json:"min_valid_seconds,omitempty"` // rotate if less validity is left; 0 to 86,400
}

// Synced is the data of user.synced: the grant is alive, and this is the user now.
type Synced struct {
	Cause     Cause     `json:"cause"`
	BeganAt   time.Time `json:"began_at"`
	Version   int64     `json:"version"`
	Refreshed bool      `json:"refreshed"` // was the pair rotated
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	NextDueAt time.Time `json:"next_due_at,omitzero"`
	Changed   []string  `json:"changed"` // names of the profile's fields that changed
	Profile   *Profile  `json:"profile,omitempty"`
	Recovered bool      `json:"recovered,omitempty"` // the first success after failures or a reauth_required
}

// Reasons of a user.reauth_required. The list is open.
const (
	ReasonRevoked         = "revoked"
	ReasonExpired         = "expired"
	ReasonRotationLost    = "rotation_lost" // the provider rotated, its reply was lost, the old token is dead
	ReasonAccountDisabled = "account_disabled"
	ReasonAccountDeleted  = "account_deleted"
	ReasonNoRefreshToken  = "no_refresh_token"
	// ReasonRefusedAlone: the provider refused this user's token three times over hours, in words that
	// nobody knows, and renewed others meanwhile. provider_error has the words' code.
	ReasonRefusedAlone = "refused"
)

// ReauthRequired is the data of user.reauth_required: this user must sign in again.
type ReauthRequired struct {
	Cause         Cause     `json:"cause"`
	BeganAt       time.Time `json:"began_at"`
	Version       int64     `json:"version"`
	Reason        string    `json:"reason"`
	ProviderError string    `json:"provider_error,omitempty"` // the code only
	LastSyncedAt  time.Time `json:"last_synced_at,omitzero"`
}

// Reasons of a user.refresh_failed. The list is open.
const (
	ReasonUnknownGrant   = "unknown_grant"   // no login of this user was ever seen, or it was erased
	ReasonReauthRequired = "reauth_required" // the user was already told to sign in again
	ReasonSuspended      = "suspended"       // an operator suspended the grant
	// ReasonSuperseded: the store holds an older refresh token than was in use, as after a restored
	// backup. It is not presented; the user's next login, or an operator, ends this.
	ReasonSuperseded          = "superseded"
	ReasonProviderUnavailable = "provider_unavailable" // unreachable, timing out, or answering 5xx
	ReasonThrottled           = "throttled"
	ReasonConfig              = "provider_config" // the provider refuses our settings, not the user
	ReasonProviderUnknown     = "provider_answer_unknown"
	ReasonSubjectMismatch     = "subject_mismatch" // userinfo is about somebody else; nothing was stored
	ReasonProfile             = "profile_unavailable"
	ReasonMassFailure         = "mass_failure"      // most of the provider's users are refused at once: nobody is believed to have left
	ReasonNobodyRenewed       = "nobody_renewed"    // refused, but nobody at all was renewed since: the provider is asked again before it is believed
	ReasonUnreadable          = "record_unreadable" // the stored record cannot be read: a key is missing, or it is damaged; a login replaces it
	ReasonRefused             = "record_refused"    // the store refuses what is to be stored of this user
	ReasonInternal            = "internal_error"    // a fault of renewd's that this user's work brings about; its log says more
	ReasonUnweighed           = "refusal_unweighed" // refused, and nobody could say whether that is to be believed; it is asked for again
	ReasonFailingAlone        = "failing_alone"     // for a day or longer the provider has failed for this user alone, and renewed others
	ReasonUnproven            = "settings_unproven" // nobody was ever renewed with these settings: the refusal may be their fault
)

// RefreshFailed is the data of user.refresh_failed: tried and not done; it says nothing against the
// user.
type RefreshFailed struct {
	Cause         Cause      `json:"cause"`
	BeganAt       time.Time  `json:"began_at"`
	Version       int64      `json:"version"`
	Reason        string     `json:"reason"`
	ProviderError string     `json:"provider_error,omitempty"`
	Attempts      int        `json:"attempts"`
	NextAttemptAt *time.Time `json:"next_attempt_at"` // null: waits for an operator
}

// Forgotten is the data of user.forgotten: the user's data was erased on request.
type Forgotten struct {
	Cause   Cause     `json:"cause"`
	BeganAt time.Time `json:"began_at"`
	By      string    `json:"by,omitempty"` // the operator
}

// Reasons of a message.rejected. The list is open.
const (
	RejectSubject         = "malformed_subject"
	RejectEnvelope        = "malformed_envelope"
	RejectData            = "malformed_data"
	RejectUnknownProvider = "unknown_provider"
	RejectSealed          = "sealed_tokens_refused" // cannot be opened, or was sealed for another user, provider or time
	RejectSender          = "sender_refused"        // the settings do not let this sender do this at this provider
	RejectUnproven        = "login_unproven"        // the provider did not name the login's user by its tokens; what was proven before stays
)

// Rejected is the data of message.rejected: a command that could not be understood. It never
// carries the body.
type Rejected struct {
	Cause   Cause  `json:"cause"`
	Subject string `json:"subject"` // the NATS subject it came on
	Reason  string `json:"reason"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"` // for people: what is wrong and what to do
}

// ProviderState is the data of provider.degraded and provider.recovered.
type ProviderState struct {
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	Waiting int64     `json:"waiting"` // renewals that wait for the provider
	// By is the operator who paused the provider, or resumed it; Note why, and Until until when: zero
	// until it is resumed.
	By    string    `json:"by,omitempty"`
	Note  string    `json:"note,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// What an operator did, in an operator.acted. The list is open.
const (
	ActKeysRotate        = "keys.rotate"
	ActKeysPromote       = "keys.promote"
	ActKeysPublish       = "keys.publish"
	ActKeysRetire        = "keys.retire"
	ActStoreAccept       = "store.accept"
	ActSubscribersAdd    = "subscribers.add"
	ActSubscribersRemove = "subscribers.remove"
	ActStreamsApply      = "streams.apply"
)

// Acted is the data of operator.acted: an operator changes something that is not one user's. What
// an operator does to a user or a provider is told in that one's own outcomes.
type Acted struct {
	Act string `json:"act"` // what, ActKeysRotate for instance
	By  string `json:"by"`  // who, in their own words: nothing proves it
	// About is to what: ids of keys, names of streams, a durable, a provider.
	About []string `json:"about,omitempty"`
}

// Profile is a user as the provider shows it, in one shape for all providers. A nil pointer means
// the provider did not say.
type Profile struct {
	ID            string          `json:"id"`
	Email         string          `json:"email,omitempty"`
	EmailVerified *bool           `json:"email_verified,omitempty"`
	Name          string          `json:"name,omitempty"` // first and last name, trimmed
	FirstName     string          `json:"first_name,omitempty"`
	LastName      string          `json:"last_name,omitempty"`
	Username      string          `json:"username,omitempty"`
	Picture       string          `json:"picture,omitempty"`
	Enabled       *bool           `json:"enabled,omitempty"`
	Locked        *bool           `json:"locked,omitempty"`
	MFAEnabled    *bool           `json:"mfa_enabled,omitempty"`
	HasPassword   *bool           `json:"has_password,omitempty"`
	Groups        []string        `json:"groups,omitempty"`        // sorted
	Roles         []string        `json:"roles,omitempty"`         // at the provider or for this client, not in an organisation; sorted
	Locale        string          `json:"locale,omitempty"`        // BCP 47 language tag, mostly
	Zoneinfo      string          `json:"zoneinfo,omitempty"`      // time zone: Europe/Berlin
	Organisations []Organisation  `json:"organisations,omitempty"` // sorted by ID
	Raw           json.RawMessage `json:"raw,omitempty"`           // the provider's own JSON; in events only where the settings show it
	Omitted       []string        `json:"omitted,omitempty"`       // names of members that were too large for an event; see FitProfile
}

// Organisation is one membership of a user.
type Organisation struct {
	ID          string   `json:"id"`
	Name        string   `json:"name,omitempty"`
	Role        string   `json:"role,omitempty"`
	Roles       []string `json:"roles,omitempty"`       // all that the user has there, inherited ones included, sorted
	Permissions []string `json:"permissions,omitempty"` // sorted
}
