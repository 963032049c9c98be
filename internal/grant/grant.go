package grant

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// Key names a grant: one user at one provider.
type Key struct {
	Provider string
	User     string
}

// Check reports whether schema accepts provider and user. A record with another key was not written
// by renewd, and its subject could reach other users' messages.
func (k Key) Check() error {
	return errors.Join(schema.CheckProvider(k.Provider), schema.CheckUser(k.User))
}

// String is for people: provider/user. An id is quoted where its end could not be told in a text:
// if it has anything but letters, digits and @._|=~+-, or begins or ends with a mark.
func (k Key) String() string {
	if plainID(k.User) {
		return k.Provider + "/" + k.User
	}
	return k.Provider + "/" + strconv.Quote(k.User)
}

func plainID(id string) bool {
	letter := func(c byte) bool {
		return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
	}
	for i := range len(id) {
		c := id[i]
		if letter(c) {
			continue
		}
		marks := "@.|=~+-"
		if i == len(id)-1 {
			marks = "=~+-"
		}
		if i == 0 || !strings.ContainsRune(marks, rune(c)) {
			return false
		}
	}
	return id != ""
}

// Pair is what a provider issued: the access token and the refresh token that renews it.
type Pair struct {
	Access    secret.Value
	Refresh   secret.Value // zero: the provider gave no refresh token
	ID        secret.Value // the ID token, if any
	Answered  bool         // ID and Access came in one answer of the provider, not in a login
	Scope     string
	ExpiresAt time.Time     // of the access token
	Lifetime  time.Duration // of the access token, measured from SentAt
	SentAt    time.Time     // when we asked for the pair (for a login: when it was sealed)
	Parent    string        // fingerprint of the refresh token presented for it; "" for a login
}

// Status says whether a grant is renewed.
type Status string

// The states. Only a login leads out of ReauthRequired and SignedOff; a login, a user.resume or an
// operator out of Suspended; a login or any other command out of Dormant.
const (
	Live           Status = "live"
	ReauthRequired Status = "reauth_required"
	Suspended      Status = "suspended"
	// SignedOff: a logout ended the session. The record holds no tokens, and Login has the place of
	// the logout, so that no earlier login signs the user in.
	SignedOff Status = "signed_out"
	// Dormant: nothing has asked for the user for Policy.Idle. The session is kept as it is, and is
	// not renewed until something asks for the user. NextDueAt is the end of the session where the
	// policy has an end, and else zero.
	Dormant Status = "dormant"
	// Unproven: nothing was ever proven of this user. There is a login, and the provider has not
	// named the login's user yet.
	Unproven Status = "unproven"
	// Forgotten: the user was erased. The record holds no tokens and no profile, only Version and
	// Login, so that no login from before the erasure brings the user back. The record may be
	// deleted once NextDueAt has passed.
	Forgotten Status = "forgotten"
)

// Progress says how far the renewal of Grant.Cause came, so that the next worker goes on where the
// last worker died.
type Progress string

// The steps that leave a mark. Empty: nothing to resume.
const (
	Saved  Progress = "saved"  // the new pair is stored; the profile is next
	Synced Progress = "synced" // Pending holds the outcome to publish
)

// Claim is the lock on a grant and the write-ahead record of a presentation: its holder may present
// the refresh token with this fingerprint. The claim dies at Until, by the store's clock.
type Claim struct {
	Nonce       string        `json:"nonce"`
	Until       time.Time     `json:"until"`
	For         time.Duration `json:"for,omitempty"` // from the claim's writing to Until
	Fingerprint string        `json:"fingerprint"`   // of the claim's refresh token
	Cause       schema.Cause  `json:"cause"`
	// Presented is set just before the token leaves for the provider. Only then is an expired claim
	// ambiguous.
	Presented bool `json:"presented,omitempty"`
}

// Verdict is a provider's refusal of one refresh token, and whether it is final.
type Verdict struct {
	Reason      string    `json:"reason"`
	Code        string    `json:"code,omitempty"` // the provider's error code
	Fingerprint string    `json:"fingerprint"`    // of the refresh token judged
	At          time.Time `json:"at"`             // when first refused
	Again       time.Time `json:"again,omitzero"` // when refused once more, to be sure
	Confirmed   bool      `json:"confirmed,omitempty"`
	// Unsure: refused in unknown words. Such a refusal is about this user only if other users are
	// renewed meanwhile, which takes longer to tell.
	Unsure bool `json:"unsure,omitempty"`
}

// Doubt remembers a presentation of the stored refresh token without a readable answer: the
// provider may have rotated the token. A refusal after that is rotation_lost, not revoked.
type Doubt struct {
	Fingerprint string    `json:"fingerprint"`
	Since       time.Time `json:"since"`
}

// Pending is an outcome, decided and stored but perhaps not yet published.
type Pending struct {
	ID   string      `json:"id"`
	Type schema.Type `json:"type"`
	// Version is the record's version when the outcome was decided. 0: decided before records kept
	// it.
	Version int64           `json:"version,omitempty"`
	Data    json.RawMessage `json:"data"` // for user.synced without the profile (in the record)
	// Stale: the profile could not be fetched this time, so the outcome goes without a profile.
	Stale bool `json:"stale,omitempty"`
}

// Position is the place of a login among all logins of a user: by the creation time of the LOGINS
// stream, then by the login's sequence in the stream.
type Position struct {
	Stream   time.Time `json:"stream,omitzero"`
	Sequence uint64    `json:"sequence,omitempty"`
	// Time is when the stream took the login, by the server's clock.
	Time time.Time `json:"time,omitzero"`
	// SealedAt is when its tokens were sealed, by the publisher's clock.
	SealedAt time.Time `json:"sealed_at,omitzero"`
	// Token is the fingerprint of the login's refresh token, or of its access token if the login
	// brought no refresh token. Token stays the same however often the token was rotated since:
	// Token identifies the same login when the login is published again.
	Token string `json:"token,omitempty"`
	// Event identifies the login's event: its sender, source and id.
	Event string `json:"event,omitempty"`
}

// sealSkew is how far the clocks of two sealing machines may be apart: only beyond sealSkew an
// older seal means an older login.
const sealSkew = 5 * time.Minute

// Repeats reports whether p, published after the proven login o, brings the tokens of o, or tokens
// sealed before those of o. Such a p is a message published again, from an outbox, a restored
// stream or a recording, and says nothing new of the user.
func (o Position) Repeats(p Position) bool {
	return p.brings(o) || !p.SealedAt.IsZero() && p.SealedAt.Before(o.SealedAt.Add(-sealSkew))
}

// brings reports whether the tokens of o and p are the same.
func (o Position) brings(p Position) bool { return o.Token != "" && o.Token == p.Token }

// rewound is how much later a login must have been taken to be newer than a login with a higher
// sequence: more than the clocks of a cluster's servers may be apart.
const rewound = time.Minute

// Before reports whether p is a newer login than o, the stored login. A stream restored from a
// backup gives sequences out again: then the time decides.
func (o Position) Before(p Position) bool {
	switch {
	case !o.Stream.Equal(p.Stream):
		return o.Stream.Before(p.Stream)
	case !o.Time.IsZero() && p.Time.Sub(o.Time) > rewound:
		return true
	}
	return o.Sequence < p.Sequence
}

// Plausible reports whether o, from an unreadable record, may keep out a login at p, which is
// handled at now. o may not if it lies in the future or has no time: another hand may have written
// o, to keep the user out for good.
func (o Position) Plausible(p Position, now time.Time) bool {
	return !o.Stream.After(p.Stream) && !o.Time.IsZero() && !o.Time.After(now.Add(rewound))
}

// Grant is the store's record: the truth about one user at one provider. Stores keep every field,
// tokens only encrypted.
//
// A Grant has about a kilobyte, so a method that says something of a Grant takes a pointer. A
// method whose result is a Grant takes its Grant by value, and returns the changed copy.
type Grant struct {
	Key
	// Revision is the store's tag for compare-and-swap; every write of any kind changes Revision.
	// Zero: not stored yet.
	Revision uint64
	// Version grows with each stored change that matters to readers of outcomes, also across an
	// erasure and a new login.
	Version int64

	Pair    Pair
	Status  Status
	Verdict *Verdict
	Claim   *Claim
	Doubt   *Doubt
	// Candidate is a login whose user the provider has not named yet; nil without such a login. See
	// OnCandidate.
	Candidate *Candidate `json:",omitempty"`

	// SavedBy is the nonce of the last save. A worker whose save was refused reads here whether
	// only the reply was lost.
	SavedBy  string
	Cause    schema.Cause // of the renewal that Progress and Pending are about
	BeganAt  time.Time    // when that renewal began
	Progress Progress
	Pending  *Pending
	// Owed are decided outcomes of earlier causes, not known to have been published. The next
	// worker on the grant publishes them.
	Owed []Pending `json:",omitempty"`
	// Refreshed: the renewal of Cause rotated the pair. Recovered: the next user.synced is the
	// first success after a failure or a reauth_required; with an empty Progress no outcome has
	// said so yet.
	Refreshed bool
	Recovered bool

	Attempts  int    // failures of this grant's own in a row
	Outages   int    // passing failures of the provider in a row
	LastError string // reason of the last failure
	// FailingSince is when the first of the Outages was; zero: none, or before records kept it.
	FailingSince time.Time `json:",omitzero"`
	// ToldAlone: an outcome has said that these outages are about this grant alone.
	ToldAlone bool `json:",omitempty"`

	// Profile is the user's profile, as last synced. StoredProfile is the store's copy, set by the
	// store. While both are the same, a save need not write Profile.
	Profile       Profile
	StoredProfile Profile `json:"-"`
	Login         Position
	// Disproven is the place of the newest rejected login, by which the login's message is
	// recognised when it comes again. Disproven says nothing of the session that Login began. Zero:
	// no rejected login, or from before records kept it.
	Disproven Position `json:",omitzero"`
	// Hold is the place of the newest user.suspend or user.resume that was carried out, among the
	// logins and logouts. Only its Stream, Sequence and Time count.
	Hold Position `json:",omitzero"`

	NextDueAt   time.Time
	LoginAt     time.Time
	RefreshedAt time.Time
	SyncedAt    time.Time // last time the profile was stored
	FailedAt    time.Time
	ActiveAt    time.Time // last login, or command of a service, or, with Policy.Idle, token read

	onCandidate bool
	// stirred: ActiveAt is so much newer than the stored ActiveAt that a write is worthwhile.
	stirred bool
}

// Fingerprint is the fingerprint of the stored refresh token.
func (g *Grant) Fingerprint() string { return g.Pair.Refresh.Fingerprint() }

// Cipher encrypts and authenticates: a blob opens only under the associated data it was sealed
// with. Safe for concurrent use.
type Cipher interface {
	Seal(plaintext, associated []byte) ([]byte, error)
	Open(sealed, associated []byte) ([]byte, error)
}

// The purposes of a sealed pair. A blob sealed for one purpose does not open for another.
const (
	PurposeStore = "store"
	PurposePark  = "park"
)

// Parcel is a pair which the store did not take, sealed with PurposePark and set aside in a stream.
type Parcel struct {
	Version int64 // the version that the pair was sealed for
	// Parent is the fingerprint of the refresh token presented for the pair.
	Parent string
	// Candidate: the pair is of an unproven login. It says nothing of the progress of the proven
	// side.
	Candidate bool
	Sealed    []byte
	// Sequence and Time are the place and the time at which the pair was set aside.
	Sequence uint64
	Time     time.Time
}

// storedPair is the plain form that is sealed, and the only place where tokens become JSON.
type storedPair struct {
	Candidate *storedPair `json:"c,omitempty"`
	// Profile is the grant's profile, where profiles are sealed. The field does not prevent a
	// rollback of renewd: for a version without this field, the user's profile is not synced yet.
	Profile json.RawMessage `json:"u,omitempty"`
	// Bound is the Digest of everything the store keeps beside. The field does not prevent a
	// rollback either.
	Bound     Digest        `json:"b,omitempty"`
	Access    string        `json:"a"`
	Refresh   string        `json:"r,omitempty"`
	ID        string        `json:"i,omitempty"`
	Answered  bool          `json:"j,omitempty"`
	Scope     string        `json:"s,omitempty"`
	ExpiresAt time.Time     `json:"e,omitzero"`
	Lifetime  time.Duration `json:"l,omitempty"`
	SentAt    time.Time     `json:"t,omitzero"`
	Parent    string        `json:"p,omitempty"`
}

// associated binds a sealed pair to its purpose, grant and version: the pair opens for no other
// user, and in no other version of the record. See Digest for the rest of a record.
func associated(purpose string, k Key, version int64) []byte {
	return fmt.Appendf(nil, "renewd %s\x00%s\x00%s\x00%d", purpose, k.Provider, k.User, version)
}

func storedOf(p Pair) storedPair {
	return storedPair{
		Access:    p.Access.Reveal(),
		Refresh:   p.Refresh.Reveal(),
		ID:        p.ID.Reveal(),
		Answered:  p.Answered,
		Scope:     p.Scope,
		ExpiresAt: p.ExpiresAt.UTC(),
		Lifetime:  p.Lifetime,
		SentAt:    p.SentAt.UTC(),
		Parent:    p.Parent,
	}
}

func (s storedPair) pair() Pair {
	return Pair{
		Access:    secret.New(s.Access),
		Refresh:   secret.New(s.Refresh),
		ID:        secret.New(s.ID),
		Answered:  s.Answered,
		Scope:     s.Scope,
		ExpiresAt: s.ExpiresAt,
		Lifetime:  s.Lifetime,
		SentAt:    s.SentAt,
		Parent:    s.Parent,
	}
}

// SealPair encrypts p for the grant k at version.
func SealPair(c Cipher, purpose string, k Key, version int64, p Pair) ([]byte, error) {
	return storedOf(p).seal(c, purpose, k, version)
}

func (s storedPair) seal(c Cipher, purpose string, k Key, version int64) ([]byte, error) {
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode pair of %s: %w", k, err)
	}
	sealed, err := c.Seal(plain, associated(purpose, k, version))
	if err != nil {
		return nil, fmt.Errorf("seal pair of %s: %w", k, err)
	}
	return sealed, nil
}

// OpenPair is the inverse of SealPair. OpenPair fails for another purpose, grant or version than
// the pair was sealed for.
func OpenPair(c Cipher, purpose string, k Key, version int64, sealed []byte) (Pair, error) {
	s, err := openStored(c, purpose, k, version, sealed)
	return s.pair(), err
}

func openStored(
	c Cipher, purpose string, k Key, version int64, sealed []byte,
) (s storedPair, _ error) {
	plain, err := c.Open(sealed, associated(purpose, k, version))
	if err != nil {
		return s, fmt.Errorf("open pair of %s at version %d: %w", k, version, err)
	}
	if err := json.Unmarshal(plain, &s); err != nil {
		return storedPair{}, fmt.Errorf("decode pair of %s: not what was sealed", k)
	}
	return s, nil
}
