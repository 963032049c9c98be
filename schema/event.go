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
	Time       time.Time // when the event happened, UTC
	DataSchema string    // address of the JSON Schema of Data
	Data       json.RawMessage
}

// Address returns the address of e: its type, provider, user and sender.
func (e Event) Address() Address {
	return Address{Type: e.Type, Provider: e.Provider, User: e.User, Sender: e.Sender}
}

// Cause is the command, or renewd's own timer, that made an outcome happen.
type Cause struct {
	ID string `json:"id"`
	// open: a command, CauseTimer, CauseRepair, or user.forget for an erasure
	Type   Type      `json:"type"`
	Source string    `json:"source,omitempty"`
	Time   time.Time `json:"time,omitzero"`
	Reason string    `json:"reason,omitempty"`
	// Sender is the service whose NATS account the command came from, as named by the NATS server,
	// not by the service. Empty: the command came from renewd's own account, or the cause is no
	// command. Source is the publisher's own word.
	Sender string `json:"sender,omitempty"`
}

// The causes other than a service's commands: the grant's own timer, and the reconciler's repair of
// a lost timer.
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

// The wants of a user.refresh_due.
const (
	WantProfile = "profile" // sync the profile, rotate the pair only if needed; the default
	WantTokens  = "tokens"  // rotate the pair now
)

// RefreshDue is the data of user.refresh_due. All fields are optional.
type RefreshDue struct {
	// free text for the audit, 256 bytes at most
	Reason string `json:"reason,omitempty"`
	Want   string `json:"want,omitempty"` // WantProfile or WantTokens
	// rotate if less validity is left; 0 to 86,400
	MinValidSeconds int `json:"min_valid_seconds,omitempty"`
}

// Logout is the data of user.logout: the user's session ends now. All fields are optional.
type Logout struct {
	// Revoke asks renewd to revoke the refresh token at the provider first (RFC 7009).
	Revoke bool   `json:"revoke,omitempty"`
	Reason string `json:"reason,omitempty"` // free text for the audit, 256 bytes at most
}

// Suspend is the data of user.suspend: no token of the user is presented, and no token is handed
// out, until a user.resume or a newer login. All fields are optional.
type Suspend struct {
	Reason string `json:"reason,omitempty"` // free text for the audit, 256 bytes at most
}

// Resume is the data of user.resume: the user goes on as before the user.suspend. All fields are
// optional.
type Resume struct {
	Reason string `json:"reason,omitempty"` // free text for the audit, 256 bytes at most
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
	// the first success after failures or a reauth_required
	Recovered bool `json:"recovered,omitempty"`
}

// Reasons of a user.reauth_required. The list is open.
const (
	ReasonRevoked = "revoked"
	ReasonExpired = "expired"
	// the provider rotated, its reply was lost, the old token is dead
	ReasonRotationLost    = "rotation_lost"
	ReasonAccountDisabled = "account_disabled"
	ReasonAccountDeleted  = "account_deleted"
	ReasonNoRefreshToken  = "no_refresh_token"
	// ReasonRefusedAlone: the provider refused this user's token three times over hours, in unknown
	// words, and renewed other users meanwhile. provider_error has the words' code.
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
	// no login of this user was ever seen, or the login was erased
	ReasonUnknownGrant   = "unknown_grant"
	ReasonReauthRequired = "reauth_required" // the user was already told to sign in again
	// a user.suspend; the next user.resume or login ends it
	ReasonSuspended = "suspended"
	ReasonSignedOut = "signed_out" // a user.logout ended the session; the next login begins another
	// ReasonSuperseded: the store holds an older refresh token than was in use, as after a restored
	// backup. The older token is not presented. The user's next login, or an operator, ends this
	// state.
	ReasonSuperseded          = "superseded"
	ReasonProviderUnavailable = "provider_unavailable" // unreachable, timing out, or answering 5xx
	ReasonThrottled           = "throttled"
	ReasonConfig              = "provider_config" // the provider refuses the settings, not the user
	ReasonProviderUnknown     = "provider_answer_unknown"
	// userinfo is about another user; nothing was stored
	ReasonSubjectMismatch = "subject_mismatch"
	ReasonProfile         = "profile_unavailable"
	// most of the provider's users are refused at once: no refusal is believed
	ReasonMassFailure = "mass_failure"
	// refused, but no user was renewed since: asked again before the refusal is believed
	ReasonNobodyRenewed = "nobody_renewed"
	// the stored record cannot be read: a key is missing, or the record is damaged; a login
	// replaces it
	ReasonUnreadable = "record_unreadable"
	ReasonRefused    = "record_refused" // the store refuses this user's record
	// a fault of renewd's brought about by this user's work; renewd's log says more
	ReasonInternal = "internal_error"
	// refused, and the refusal cannot be weighed now; asked again
	ReasonUnweighed = "refusal_unweighed"
	// for a day or longer the provider has failed for this user alone, and renewed other users
	ReasonFailingAlone = "failing_alone"
	// no user was ever renewed with these settings, which may be at fault
	ReasonUnproven = "settings_unproven"
)

// RefreshFailed is the data of user.refresh_failed: tried and not done. The event says nothing
// against the user.
type RefreshFailed struct {
	Cause         Cause      `json:"cause"`
	BeganAt       time.Time  `json:"began_at"`
	Version       int64      `json:"version"`
	Reason        string     `json:"reason"`
	ProviderError string     `json:"provider_error,omitempty"`
	Attempts      int        `json:"attempts"`
	NextAttemptAt *time.Time `json:"next_attempt_at"` // null: waits for an operator
}

// Why a refresh token was not revoked though a user.logout asked for revocation. The list is open.
// A provider's own error code may stand there too.
const (
	RevokeUnsupported = "unsupported" // the provider names no revocation endpoint
	RevokeFailed      = "provider_unavailable"
	RevokeNoToken     = "no_refresh_token"  // there was no token to revoke
	RevokeUnreadable  = "record_unreadable" // the stored tokens cannot be opened
	RevokeBusy        = "in_use"            // a renewal was presenting the token for too long
)

// SignedOut is the data of user.signed_out: a user.logout was carried out, or the session has
// lasted for as long as the settings allow. renewd holds no token of the session any more.
type SignedOut struct {
	Cause   Cause     `json:"cause"`
	BeganAt time.Time `json:"began_at"`
	Version int64     `json:"version"`
	Reason  string    `json:"reason,omitempty"` // the user.logout's own, or ReasonSessionMax
	// Revoked: the provider has revoked the refresh token, as the user.logout asked.
	Revoked bool `json:"revoked"`
	// RevokeError is the reason why a requested revocation failed: RevokeUnsupported for instance.
	// The session may live on at the provider then.
	RevokeError string `json:"revoke_error,omitempty"`
}

// Suspended is the data of user.suspended: a user.suspend was carried out. The session is kept.
type Suspended struct {
	Cause   Cause     `json:"cause"`
	BeganAt time.Time `json:"began_at"`
	Version int64     `json:"version"`
	Reason  string    `json:"reason,omitempty"` // the user.suspend's own
}

// ReasonSessionMax is the reason of a user.signed_out whose cause is no user.logout: the session
// has lasted for as long as the setting policy.session_max allows.
const ReasonSessionMax = "session_max"

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
	// cannot be opened, or was sealed for another user, provider or time
	RejectSealed = "sealed_tokens_refused"
	// the settings do not let this sender do this at this provider
	RejectSender = "sender_refused"
	// the sender publishes more than its rate allows: nothing was done, publish the command again
	// later
	RejectSenderRate = "sender_rate"
	// the provider did not name the login's user by its tokens; an earlier proven login stays
	RejectUnproven = "login_unproven"
)

// Rejected is the data of message.rejected: a command that could not be understood. A Rejected
// never carries the body.
type Rejected struct {
	Cause   Cause  `json:"cause"`
	Subject string `json:"subject"` // the command's NATS subject
	Reason  string `json:"reason"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"` // for people: the fault and the remedy
}

// ProviderState is the data of provider.degraded and provider.recovered.
type ProviderState struct {
	Reason  string    `json:"reason"`
	Since   time.Time `json:"since"`
	Waiting int64     `json:"waiting"` // renewals waiting for the provider
	// By is the operator who paused the provider, or resumed it. Note gives the reason. Until is
	// the end of the pause; zero: until the provider is resumed.
	By    string    `json:"by,omitempty"`
	Note  string    `json:"note,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// An operator's acts, in an operator.acted. The list is open.
const (
	ActKeysRotate        = "keys.rotate"
	ActKeysPromote       = "keys.promote"
	ActKeysPublish       = "keys.publish"
	ActKeysRetire        = "keys.retire"
	ActStoreAccept       = "store.accept"
	ActSubscribersAdd    = "subscribers.add"
	ActSubscribersRemove = "subscribers.remove"
	ActClientsAdd        = "clients.add"
	ActClientsRemove     = "clients.remove"
	ActStreamsApply      = "streams.apply"
	ActProviderAccept    = "provider.accept"
	ActSinksPause        = "sinks.pause"
	ActSinksResume       = "sinks.resume"
	ActSinksRetry        = "sinks.retry"
	ActSinksReplay       = "sinks.replay"
	ActSourcesImport     = "sources.import"
	ActSinksDisable      = "sinks.disable" // by renewd: the receiver is gone, or was down
)

// Reading is the data of token.read: a reader got a version of a user's access token. A Reading
// holds no token. renewd publishes a token.read only if the setting token_audit asks for it, and
// once for a reader and a version, not for each read. A worker that forgot the token.read, or
// another worker, may publish it again under the same id.
type Reading struct {
	// Reader is the client (over HTTP) or the sender (over NATS). Empty: the request named no
	// sender.
	Reader string `json:"reader,omitempty"`
	// the door the token was read at; open: http, nats
	Door    string `json:"door"`
	Version int64  `json:"version"` // of the user's record, as in outcomes
	// of the token; zero: the provider gave it no end
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

// Acted is the data of operator.acted: an operator changes something that is not about one user. A
// change to a user or a provider is told in the outcomes of this user or provider.
type Acted struct {
	Act string `json:"act"` // the act, ActKeysRotate for instance
	By  string `json:"by"`  // the operator, in their own words: nothing proves the name
	// About is the objects of the act: ids of keys, names of streams, a durable, a provider.
	About []string `json:"about,omitempty"`
}

// Profile is a user as the provider shows the user, in one shape for all providers. A nil pointer
// means: the provider did not say.
type Profile struct {
	ID            string   `json:"id"`
	Email         string   `json:"email,omitempty"`
	EmailVerified *bool    `json:"email_verified,omitempty"`
	Name          string   `json:"name,omitempty"` // first and last name, trimmed
	FirstName     string   `json:"first_name,omitempty"`
	LastName      string   `json:"last_name,omitempty"`
	Username      string   `json:"username,omitempty"`
	Picture       string   `json:"picture,omitempty"`
	Enabled       *bool    `json:"enabled,omitempty"`
	Locked        *bool    `json:"locked,omitempty"`
	MFAEnabled    *bool    `json:"mfa_enabled,omitempty"`
	HasPassword   *bool    `json:"has_password,omitempty"`
	Groups        []string `json:"groups,omitempty"` // sorted
	// at the provider or for this client, not in an organisation; sorted
	Roles         []string       `json:"roles,omitempty"`
	Locale        string         `json:"locale,omitempty"`        // BCP 47 language tag, mostly
	Zoneinfo      string         `json:"zoneinfo,omitempty"`      // time zone: Europe/Berlin
	Organisations []Organisation `json:"organisations,omitempty"` // sorted by ID
	// the provider's own JSON; in events only where the settings show it
	Raw json.RawMessage `json:"raw,omitempty"`
	// names of members too large for an event; see FitProfile
	Omitted []string `json:"omitted,omitempty"`
}

// Organisation is one membership of a user.
type Organisation struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	Role string `json:"role,omitempty"`
	// all roles of the user there, inherited roles included, sorted
	Roles       []string `json:"roles,omitempty"`
	Permissions []string `json:"permissions,omitempty"` // sorted
}
