package seal

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Errors of this package. Their texts hold nothing that was sealed.
var (
	// ErrUnknownKey: sealed with a key that is not in the keyring. Restore the key, or seal again.
	ErrUnknownKey = errors.New("sealed with a key that is not in the keyring")
	// ErrSealed: not in renewd's form, changed since it was sealed, or bound to something else.
	ErrSealed = errors.New("cannot be opened")
	// ErrKeyring: a keyring file that cannot be read.
	ErrKeyring = errors.New("malformed keyring")
	// ErrPin: a public key is not among the pinned keys.
	ErrPin = errors.New("the public key is none of the pinned ones")
	// ErrNotPromoted: the keyring already has fresh keys, which do not seal yet.
	ErrNotPromoted = errors.New("the keyring has fresh keys that wait to be promoted")
	// ErrNothingToPromote: the newest keys of the keyring already seal.
	ErrNothingToPromote = errors.New("the keyring has no fresh keys: the newest ones seal already")
	// ErrNoKey: the keyring has no key of this id.
	ErrNoKey = errors.New("no such key in the keyring")
	// ErrCurrent: the key seals, so it cannot be retired.
	ErrCurrent = errors.New("the key is the one that seals")
	// ErrNoStoreKeys: the keyring has login keys alone, so it seals nothing for the store.
	ErrNoStoreKeys = errors.New("the keyring has no store keys")
)

// The uses of a key.
const (
	UseLogin = "login" // logins are sealed to this key
	UseStore = "store" // stored and parked tokens are sealed with this key
)

// KeyInfo describes a key without its secret.
type KeyInfo struct {
	ID      string    `json:"id"`
	Use     string    `json:"use"` // UseLogin or UseStore
	Created time.Time `json:"created"`
	Current bool      `json:"current"` // this key seals
	// Thumbprint is the public key's (RFC 7638, SHA-256), for publishers to pin; of login keys
	// only.
	Thumbprint string `json:"thumbprint,omitempty"`
	// Next: the key is newer than the current key, and only opens until it is promoted.
	Next bool `json:"next,omitempty"`
}

// Keyring holds renewd's keys of both uses, or of one use. Treat the output of Marshal like a
// password.
type Keyring struct {
	login []loginKey // the sealing key last; empty: without keys of this use
	store []storeKey // likewise
}

type loginKey struct {
	id      string
	created time.Time
	private *ecdsa.PrivateKey
}

type storeKey struct {
	id      string // 8 bytes, also in each blob
	created time.Time
	master  []byte
}

// name is the key's id as people see the id.
func (s storeKey) name() string { return storeKeyName(s.id) }

func storeKeyName(id string) string { return base64.RawURLEncoding.EncodeToString([]byte(id)) }

// NewKeyring returns a keyring with one fresh key of each of these uses. Without uses the keyring
// has keys of both uses.
func NewKeyring(now time.Time, uses ...string) (*Keyring, error) {
	if len(uses) == 0 {
		uses = []string{UseLogin, UseStore}
	}
	return new(Keyring).fresh(now, uses)
}

// Uses are the uses of the keyring's keys.
func (k *Keyring) Uses() (uses []string) {
	if len(k.login) > 0 {
		uses = append(uses, UseLogin)
	}
	if len(k.store) > 0 {
		uses = append(uses, UseStore)
	}
	return uses
}

// Only returns a copy of k with the keys of these uses.
func (k *Keyring) Only(uses ...string) *Keyring {
	part := new(Keyring)
	if slices.Contains(uses, UseLogin) {
		part.login = slices.Clone(k.login)
	}
	if slices.Contains(uses, UseStore) {
		part.store = slices.Clone(k.store)
	}
	return part
}

// With returns a copy of k in which the keys of part replace k's keys of the same use.
func (k *Keyring) With(part *Keyring) *Keyring {
	whole := k.Only(UseLogin, UseStore)
	if len(part.login) > 0 {
		whole.login = slices.Clone(part.login)
	}
	if len(part.store) > 0 {
		whole.store = slices.Clone(part.store)
	}
	return whole
}

// Rotate returns a copy of k with one fresh key of each of these uses. The fresh keys open only
// until they are promoted: every worker must be able to open what one worker seals. Without uses,
// k's uses are taken. Errors: ErrNotPromoted.
func (k *Keyring) Rotate(now time.Time, uses ...string) (*Keyring, error) {
	if len(uses) == 0 {
		uses = k.Uses()
	}
	part := k.Only(uses...)
	if part.waiting() {
		return nil, ErrNotPromoted
	}
	// Times tell which keys are the newest, also where a clock was set back.
	for _, key := range part.Keys() {
		if !now.After(key.Created) {
			now = key.Created.Add(time.Second)
		}
	}
	next, err := part.fresh(now, uses)
	if err != nil {
		return nil, err
	}
	behindTheLast(next.login)
	behindTheLast(next.store)
	return k.With(next), nil
}

// behindTheLast swaps the last two keys.
func behindTheLast[T any](keys []T) {
	if n := len(keys); n > 1 {
		keys[n-2], keys[n-1] = keys[n-1], keys[n-2]
	}
}

// Promote returns a copy of k in which the newest key of each of these uses seals. Without uses,
// k's uses are taken. Errors: ErrNothingToPromote.
func (k *Keyring) Promote(uses ...string) (*Keyring, error) {
	if len(uses) == 0 {
		uses = k.Uses()
	}
	next := k.Only(uses...)
	if !next.waiting() {
		return nil, ErrNothingToPromote
	}
	slices.SortStableFunc(next.login, func(a, b loginKey) int {
		return a.created.Compare(b.created)
	})
	slices.SortStableFunc(next.store, func(a, b storeKey) int {
		return a.created.Compare(b.created)
	})
	return k.With(next), nil
}

// Retire returns a copy of k without the keys of these ids. Nothing sealed by these keys opens any
// more. Errors: ErrNoKey, ErrCurrent.
func (k *Keyring) Retire(ids ...string) (*Keyring, error) {
	keys := k.Keys()
	for _, id := range ids {
		switch {
		case !slices.ContainsFunc(keys, func(key KeyInfo) bool { return key.ID == id }):
			return nil, fmt.Errorf("%s: %w", id, ErrNoKey)
		case slices.ContainsFunc(keys, func(key KeyInfo) bool {
			return key.ID == id && key.Current
		}):
			return nil, fmt.Errorf("%s: %w", id, ErrCurrent)
		}
	}
	goes := func(l loginKey) bool { return slices.Contains(ids, l.id) }
	leaves := func(s storeKey) bool { return slices.Contains(ids, s.name()) }
	return &Keyring{
		login: slices.DeleteFunc(slices.Clone(k.login), goes),
		store: slices.DeleteFunc(slices.Clone(k.store), leaves),
	}, nil
}

// Old lists the ids of the store keys that sealed before the present store key.
func (k *Keyring) Old() (ids []string) {
	for _, key := range k.Keys() {
		if key.Use == UseStore && !key.Current && !key.Next {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// waiting reports whether there are keys newer than the sealing keys.
func (k *Keyring) waiting() bool {
	return slices.ContainsFunc(k.Keys(), func(i KeyInfo) bool { return i.Next })
}

// fresh is a copy of k with one more key of each of these uses. The new keys seal.
func (k *Keyring) fresh(now time.Time, uses []string) (*Keyring, error) {
	id, err := newKeyID()
	if err != nil {
		return nil, err
	}
	next := k.Only(UseLogin, UseStore)
	if slices.Contains(uses, UseLogin) {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("generate login key: %w", err)
		}
		next.login = append(next.login, loginKey{"login-" + storeKeyName(id), now.UTC(), private})
	}
	if slices.Contains(uses, UseStore) {
		master := make([]byte, masterSize)
		if _, err := rand.Read(master); err != nil {
			return nil, fmt.Errorf("generate store key: %w", err)
		}
		next.store = append(next.store, storeKey{id, now.UTC(), master})
	}
	return next, nil
}

// newKeyID is random. Its name does not begin with a dash, since a command would take the name for
// a flag.
func newKeyID() (string, error) {
	for id := make([]byte, keyIDSize); ; {
		if _, err := rand.Read(id); err != nil {
			return "", fmt.Errorf("generate key id: %w", err)
		}
		if !strings.HasPrefix(storeKeyName(string(id)), "-") {
			return string(id), nil
		}
	}
}

// Keys lists the keyring's keys, by kind and the oldest first.
func (k *Keyring) Keys() []KeyInfo {
	var login, store []KeyInfo
	for _, l := range k.login {
		sum, err := thumbprint(jose.JSONWebKey{Key: &l.private.PublicKey})
		if err != nil {
			panic("seal: thumbprint of a public key: " + err.Error()) // a P-256 key: cannot happen
		}
		login = append(login, KeyInfo{ID: l.id, Use: UseLogin, Created: l.created, Thumbprint: sum})
	}
	for _, s := range k.store {
		store = append(store, KeyInfo{ID: s.name(), Use: UseStore, Created: s.created})
	}
	for _, kind := range [][]KeyInfo{login, store} {
		if len(kind) == 0 {
			continue
		}
		current := &kind[len(kind)-1]
		current.Current = true
		for i := range kind {
			kind[i].Next = kind[i].Created.After(current.Created)
		}
	}
	keys := append(login, store...)
	slices.SortStableFunc(keys, func(a, b KeyInfo) int {
		return cmp.Or(cmp.Compare(a.Use, b.Use), a.Created.Compare(b.Created))
	})
	return keys
}

// IDs are the ids of all keys, also of keys that only open.
func (k *Keyring) IDs() (ids []string) {
	for _, key := range k.Keys() {
		ids = append(ids, key.ID)
	}
	return ids
}

// Sealing are the ids of the keys that seal: one of each use.
func (k *Keyring) Sealing() (ids []string) {
	for _, key := range k.Keys() {
		if key.Current {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// JWKS is the public key that logins are sealed to, as a JSON Web Key Set (RFC 7517). The set has
// the current key only, so that no publisher seals to a key on its way out. JWKS is nil without
// login keys.
func (k *Keyring) JWKS() []byte {
	if len(k.login) == 0 {
		return nil
	}
	return k.login[len(k.login)-1].jwks()
}

// Published reports whether the key set equals, to the byte, a set this keyring gives out, has
// given out or will. An id alone proves nothing: the writer of a key chooses its id.
func (k *Keyring) Published(jwks []byte) bool {
	return slices.ContainsFunc(k.login, func(l loginKey) bool {
		return bytes.Equal(l.jwks(), jwks)
	})
}

func (l loginKey) jwks() []byte {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{
		Key: &l.private.PublicKey, KeyID: l.id, Algorithm: string(jose.ECDH_ES), Use: "enc",
	}}}
	raw, err := json.Marshal(set)
	if err != nil {
		panic("seal: encode public key: " + err.Error()) // a P-256 key of our own: cannot happen
	}
	return raw
}

const (
	fileVersion = 1
	masterSize  = 32
	keyIDSize   = 8
)

// file is the keyring as written to a file.
type file struct {
	Version int         `json:"version"`
	Login   []fileLogin `json:"login,omitempty"`
	Store   []fileStore `json:"store,omitempty"`
}

type fileLogin struct {
	Created time.Time       `json:"created"`
	Key     jose.JSONWebKey `json:"key"` // private
}

type fileStore struct {
	ID      []byte    `json:"id"`
	Created time.Time `json:"created"`
	Master  []byte    `json:"master"`
}

// Marshal writes the keyring with its secrets, as ParseKeyring reads it.
func (k *Keyring) Marshal() ([]byte, error) {
	f := file{Version: fileVersion}
	for _, l := range k.login {
		f.Login = append(f.Login, fileLogin{
			l.created,
			jose.JSONWebKey{
				Key:       l.private,
				KeyID:     l.id,
				Use:       "enc",
				Algorithm: string(jose.ECDH_ES),
			},
		})
	}
	for _, s := range k.store {
		f.Store = append(f.Store, fileStore{[]byte(s.id), s.created, s.master})
	}
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode keyring: %w", err)
	}
	return append(raw, '\n'), nil
}

// ParseKeyring reads the output of Marshal: keys of both uses, or of one use. Its errors wrap
// ErrKeyring and name the field at fault, never its value.
func ParseKeyring(raw []byte) (*Keyring, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var f file
	if err := dec.Decode(&f); err != nil {
		return nil, fmt.Errorf("%w: no keyring file of this version", ErrKeyring)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows the keyring", ErrKeyring)
	}
	switch {
	case f.Version != fileVersion:
		return nil, fmt.Errorf("%w: version: %d: this renewd reads %d",
			ErrKeyring, f.Version, fileVersion)
	case len(f.Login) == 0 && len(f.Store) == 0:
		return nil, fmt.Errorf("%w: login, store: want at least one key", ErrKeyring)
	}
	k := new(Keyring)
	for i, l := range f.Login {
		private, ok := l.Key.Key.(*ecdsa.PrivateKey)
		if !ok || private.Curve != elliptic.P256() || l.Key.KeyID == "" {
			return nil, fmt.Errorf("%w: login[%d].key: want a private P-256 key with a kid",
				ErrKeyring, i)
		}
		k.login = append(k.login, loginKey{l.Key.KeyID, l.Created, private})
	}
	for i, s := range f.Store {
		if len(s.ID) != keyIDSize || len(s.Master) != masterSize {
			return nil, fmt.Errorf("%w: store[%d]: want an id of %d and a master of %d bytes",
				ErrKeyring, i, keyIDSize, masterSize)
		}
		k.store = append(k.store, storeKey{string(s.ID), s.Created, s.Master})
	}
	if err := k.refuseTwins(); err != nil {
		return nil, err
	}
	return k, nil
}

// refuseTwins refuses two keys of one use and one id: the key that opens would depend on their
// order.
func (k *Keyring) refuseTwins() error {
	seen := map[string]bool{}
	for _, key := range k.Keys() {
		name := key.Use + " " + key.ID
		if seen[name] {
			return fmt.Errorf("%w: two keys have the id %s", ErrKeyring, key.ID)
		}
		seen[name] = true
	}
	return nil
}

// String hides the keys from logs.
func (k *Keyring) String() string {
	return fmt.Sprintf("keyring of %d keys", len(k.login)+len(k.store))
}

// GoString hides the keys from %#v.
func (k *Keyring) GoString() string { return k.String() }
