package grant

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// Key names a grant: one user at one provider.
type Key struct {
	Provider string
	User     string
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
	Access    Secret
	Refresh   Secret // zero: the provider gave none
	ID        Secret // the ID token, if any
	Answered  bool   // ID came with Access in one answer of the provider, and not with a login
	Scope     string
	ExpiresAt time.Time     // of the access token
	Lifetime  time.Duration // of the access token, measured from SentAt
	SentAt    time.Time     // when we asked for it (for a login: when it was sealed)
	Parent    string        // fingerprint of the refresh token that was presented for it; empty for a login
}

// Status says whether a grant is renewed.
type Status string

// The states. Only a login leads out of ReauthRequired, a login or an operator out of Suspended.
const (
	Live           Status = "live"
	ReauthRequired Status = "reauth_required"
	Suspended      Status = "suspended"
	// Unproven: nothing was ever proven of this user. There is a login, and the provider has not
	// named its user yet.
	Unproven Status = "unproven"
	// Forgotten: the user was erased. The record holds no tokens and no profile, only Version and
	// Login, so that no login of before the erasure brings the user back. It may be deleted once
	// NextDueAt has passed.
	Forgotten Status = "forgotten"
)

// Progress says how far the renewal of Grant.Cause came, so that the next worker goes on where the
// last one died.
type Progress string

// The steps that leave a mark. Empty: nothing to resume.
const (
	Saved  Progress = "saved"  // the new pair is stored; the profile is next
	Synced Progress = "synced" // Pending holds the outcome to publish
)

// Claim is the lock on a grant and the write-ahead record of a presentation: whoever holds it may
// present the refresh token with this fingerprint. It dies at Until, by the store's clock.
type Claim struct {
	Nonce       string        `json:"nonce"`
	Until       time.Time     `json:"until"`
	For         time.Duration `json:"for,omitempty"` // how long it lasts from when it was written
	Fingerprint string        `json:"fingerprint"`   // of the refresh token that it is for
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
	// Unsure: refused in words that nobody knows. That is about this user only if others are renewed
	// meanwhile, which takes longer to tell.
	Unsure bool `json:"unsure,omitempty"`
}

// Doubt remembers that a presentation of the stored refresh token ended without a readable answer:
// the provider may have rotated it. A refusal after that is rotation_lost, not revoked.
type Doubt struct {
	Fingerprint string    `json:"fingerprint"`
	Since       time.Time `json:"since"`
}

// Pending is an outcome that is decided and stored but perhaps not yet published.
type Pending struct {
	ID   string      `json:"id"`
	Type schema.Type `json:"type"`
	// Version is the record's when the outcome was decided. 0: it was decided before records kept
	// it.
	Version int64           `json:"version,omitempty"`
	Data    json.RawMessage `json:"data"` // for user.synced without the profile: the record has it
	// Stale: the profile could not be fetched this time, so the outcome goes without it.
	Stale bool `json:"stale,omitempty"`
}

// Order places a login among all logins of a user: by the creation time of the LOGINS stream, then
// its sequence in it.
type Order struct {
	Stream   time.Time `json:"stream,omitzero"`
	Sequence uint64    `json:"sequence,omitempty"`
	// Time is when the stream took the login, by the server's clock.
	Time time.Time `json:"time,omitzero"`
	// SealedAt is when its tokens were sealed, by the publisher's clock.
	SealedAt time.Time `json:"sealed_at,omitzero"`
	// Token is the fingerprint of the refresh token it brought, or of the access token if it
	// brought no other. It stays as it is however often that token was rotated since: the same
	// login published again is known by it.
	Token string `json:"token,omitempty"`
	// Event tells the login's event, its source and id, from others.
	Event string `json:"event,omitempty"`
}

// sealSkew is how far the clocks of two machines that seal may be apart: only beyond it an older
// seal tells an older login.
const sealSkew = 5 * time.Minute

// Repeats reports whether p, which was published after o, a login that was proven, brings what o
// brought, or what was sealed before it: a message that was published again, from an outbox, a
// restored stream or a recording. It says nothing new of the user.
func (o Order) Repeats(p Order) bool {
	return p.brings(o) || !p.SealedAt.IsZero() && p.SealedAt.Before(o.SealedAt.Add(-sealSkew))
}

// brings reports whether the tokens of o and p are the same.
func (o Order) brings(p Order) bool { return o.Token != "" && o.Token == p.Token }

// rewound is how much later a login must have been taken to be newer than one with a higher
// sequence: more than the clocks of a cluster's servers may be apart.
const rewound = time.Minute

// Before reports whether p is a newer login than o, the stored one. A stream restored from a backup
// gives sequences out again; there the time tells.
func (o Order) Before(p Order) bool {
	switch {
	case !o.Stream.Equal(p.Stream):
		return o.Stream.Before(p.Stream)
	case !o.Time.IsZero() && p.Time.Sub(o.Time) > rewound:
		return true
	}
	return o.Sequence < p.Sequence
}

// Grant is the store's record: the truth about one user at one provider. Stores keep every field,
// tokens only encrypted.
type Grant struct {
	Key
	// Revision is the store's tag for compare-and-swap; every write of any kind changes it. Zero:
	// not stored yet.
	Revision uint64
	// Version grows with each stored change that others may care about, also across an erasure and
	// a new login.
	Version int64

	Pair    Pair
	Status  Status
	Verdict *Verdict
	Claim   *Claim
	Doubt   *Doubt
	// Candidate is a login whose user the provider has not named yet. nil: there is none. See
	// OnCandidate.
	Candidate *Candidate `json:",omitempty"`

	// SavedBy is the nonce of the last save: it tells a worker whose save was refused that the
	// reply was lost, not the save.
	SavedBy  string
	Cause    schema.Cause // of the renewal that Progress and Pending are about
	BeganAt  time.Time    // when that renewal began
	Progress Progress
	Pending  *Pending
	// Owed are outcomes of earlier causes which were decided, and which nobody is known to have
	// published. Whoever works on the grant publishes them.
	Owed []Pending `json:",omitempty"`
	// Refreshed: that renewal rotated the pair. Recovered: the next user.synced is the first
	// success after a failure or a reauth_required; with an empty Progress it has not been said
	// yet.
	Refreshed bool
	Recovered bool

	Attempts  int    // failures of this grant's own in a row
	Outages   int    // passing failures of the provider in a row
	LastError string // reason of the last failure
	// FailingSince is when the first of the Outages was; zero: none, or before records kept it.
	FailingSince time.Time `json:",omitzero"`
	// ToldAlone: it was told that these outages are this grant's alone.
	ToldAlone bool `json:",omitempty"`

	// Profile is the user's, as last synced. While it is Kept, which stores set to the one they
	// have, a save need not write it.
	Profile Profile
	Kept    Profile `json:"-"`
	Login   Order

	NextDueAt   time.Time
	LoginAt     time.Time
	RefreshedAt time.Time
	SyncedAt    time.Time // last time the profile was stored
	FailedAt    time.Time
	ActiveAt    time.Time // last login or command of a service

	onCandidate bool
}

// Fingerprint is that of the stored refresh token.
func (g Grant) Fingerprint() string { return g.Pair.Refresh.Fingerprint() }

// Cipher encrypts and authenticates: a blob opens only under the associated data it was sealed
// with. Safe for concurrent use.
type Cipher interface {
	Seal(plaintext, associated []byte) ([]byte, error)
	Open(sealed, associated []byte) ([]byte, error)
}

// What a sealed pair is for. A blob sealed for one purpose does not open for another.
const (
	PurposeStore = "store"
	PurposePark  = "park"
)

// Parcel is a pair that the store would not take, sealed with PurposePark and set aside in a
// stream.
type Parcel struct {
	Version int64 // that the pair was sealed for
	// Parent is the fingerprint of the refresh token that the pair was got with.
	Parent string
	// Candidate: the pair is of a login that was not proven. It says nothing of how far the proven
	// side has come.
	Candidate bool
	Sealed    []byte
	// Sequence and Time are where and when it was set aside.
	Sequence uint64
	Time     time.Time
}

// storedPair is the plain form that is sealed. It is the only place where tokens become JSON.
type storedPair struct {
	Candidate *storedPair `json:"c,omitempty"`
	// Profile is the grant's, where profiles are sealed. It costs no rollback: a renewd that does
	// not know it takes the user for one whose profile was not synced yet.
	Profile   json.RawMessage `json:"u,omitempty"`
	Access    string          `json:"a"`
	Refresh   string          `json:"r,omitempty"`
	ID        string          `json:"i,omitempty"`
	Answered  bool            `json:"j,omitempty"`
	Scope     string          `json:"s,omitempty"`
	ExpiresAt time.Time       `json:"e,omitzero"`
	Lifetime  time.Duration   `json:"l,omitempty"`
	SentAt    time.Time       `json:"t,omitzero"`
	Parent    string          `json:"p,omitempty"`
}

// associated binds a sealed pair to its purpose, grant and version: a row copied to another user,
// or rolled back, does not open.
func associated(purpose string, k Key, version int64) []byte {
	return fmt.Appendf(nil, "renewd %s\x00%s\x00%s\x00%d", purpose, k.Provider, k.User, version)
}

func storedOf(p Pair) storedPair {
	return storedPair{
		Access: p.Access.Reveal(), Refresh: p.Refresh.Reveal(), ID: p.ID.Reveal(), Answered: p.Answered, Scope: p.Scope, ExpiresAt: p.ExpiresAt.UTC(),
		Lifetime: p.Lifetime, SentAt: p.SentAt.UTC(), Parent: p.Parent,
	}
}

func (s storedPair) pair() Pair {
	return Pair{NewSecret(s.Access), NewSecret(s.Refresh), NewSecret(s.ID), s.Answered, s.Scope, s.ExpiresAt, s.Lifetime, s.SentAt, s.Parent}
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

// OpenPair is the inverse of SealPair. It fails for another purpose, grant or version than the pair
// was sealed for.
func OpenPair(c Cipher, purpose string, k Key, version int64, sealed []byte) (Pair, error) {
	s, err := openStored(c, purpose, k, version, sealed)
	return s.pair(), err
}

func openStored(c Cipher, purpose string, k Key, version int64, sealed []byte) (s storedPair, _ error) {
	plain, err := c.Open(sealed, associated(purpose, k, version))
	if err != nil {
		return s, fmt.Errorf("open pair of %s at version %d: %w", k, version, err)
	}
	if err := json.Unmarshal(plain, &s); err != nil {
		return storedPair{}, fmt.Errorf("decode pair of %s: not what was sealed", k)
	}
	return s, nil
}

// SealTokens encrypts all tokens of g, those of logins that are not proven too, as a store keeps
// them; with profile its profile as well, which then need be nowhere else.
func SealTokens(c Cipher, g Grant, profile bool) ([]byte, error) {
	s := storedGrant(g.Pair, g.Candidate)
	if profile {
		s.Profile = json.RawMessage(g.Profile)
	}
	return s.seal(c, PurposeStore, g.Key, g.Version)
}

func storedGrant(p Pair, next *Candidate) storedPair {
	s := storedOf(p)
	if next != nil {
		candidate := storedGrant(next.Pair, next.Next)
		s.Candidate = &candidate
	}
	return s
}

// ResealTokens seals anew, as they are, what SealTokens sealed of the grant k at version. Its error
// wraps ErrUnreadable if they do not open.
func ResealTokens(c Cipher, k Key, version int64, sealed []byte) ([]byte, error) {
	bound := associated(PurposeStore, k, version)
	plain, err := c.Open(sealed, bound)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return c.Seal(plain, bound)
}

// OpenTokens is the inverse of SealTokens: it puts the tokens into g, which has everything else,
// and the profile if that was sealed with them. Its error wraps ErrUnreadable.
func OpenTokens(c Cipher, g *Grant, sealed []byte) error {
	s, err := openStored(c, PurposeStore, g.Key, g.Version, sealed)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	g.Pair = s.pair()
	if len(s.Profile) > 0 {
		g.Profile = Profile(s.Profile)
	}
	all := g.Candidate.all()
	for i := range all {
		if s.Candidate == nil {
			return fmt.Errorf("%w: the tokens of a login of %s are missing", ErrUnreadable, g.Key)
		}
		s = *s.Candidate
		all[i].Pair = s.pair()
	}
	g.Candidate = chained(all)
	return nil
}
