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

// Errors of this package. They wrap nothing that was sealed.
var (
	// ErrUnknownKey: sealed with a key that is not in the keyring. Restore the key, or seal anew.
	ErrUnknownKey = errors.New("sealed with a key that is not in the keyring")
	// ErrSealed: not sealed by us, changed since, or bound to something else.
	ErrSealed = errors.New("cannot be opened")
	// ErrKeyring: a keyring file that makes no sense.
	ErrKeyring = errors.New("malformed keyring")
	// ErrPin: a public key is none of those that were pinned.
	ErrPin = errors.New("the public key is none of the pinned ones")
	// ErrNotPromoted: the keyring has fresh keys already that do not seal yet.
	ErrNotPromoted = errors.New("the keyring has fresh keys that wait to be promoted")
	// ErrNothingToPromote: the newest keys of the keyring are those that seal.
	ErrNothingToPromote = errors.New("the keyring has no fresh keys: the newest ones seal already")
	// ErrNoKey: the keyring has no key of this id.
	ErrNoKey = errors.New("no such key in the keyring")
	// ErrCurrent: the key seals, so that it cannot be retired.
	ErrCurrent = errors.New("the key is the one that seals")
)

// What a key is for.
const (
	UseLogin = "login" // logins are sealed to it
	UseStore = "store" // stored and parked tokens are sealed with it
)

// KeyInfo describes a key without its secret.
type KeyInfo struct {
	ID      string    `json:"id"`
	Use     string    `json:"use"` // UseLogin or UseStore
	Created time.Time `json:"created"`
	Current bool      `json:"current"` // it is the one that seals
	// Thumbprint is the public key's (RFC 7638, SHA-256), for publishers to pin; of login keys only.
	Thumbprint string `json:"thumbprint,omitempty"`
	// Next: it is newer than the one that seals, and opens only until it is promoted.
	Next bool `json:"next,omitempty"`
}

// Keyring holds renewd's keys. Treat what Marshal returns like a password.
type Keyring struct {
	login []loginKey // the one that seals last
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

// name is the key's id as people see it.
func (s storeKey) name() string { return storeKeyName(s.id) }

func storeKeyName(id string) string { return base64.RawURLEncoding.EncodeToString([]byte(id)) }

// NewKeyring returns a keyring with one fresh key of each kind.
func NewKeyring(now time.Time) (*Keyring, error) { return new(Keyring).fresh(now) }

// Rotate returns a copy of k with one fresh key of each kind, which open only until they are
// promoted: what one worker seals, all must be able to open. Errors: ErrNotPromoted.
func (k *Keyring) Rotate(now time.Time) (*Keyring, error) {
	if k.waiting() {
		return nil, ErrNotPromoted
	}
	// Times tell which keys are the newest, also where a clock was set back.
	for _, key := range k.Keys() {
		if !now.After(key.Created) {
			now = key.Created.Add(time.Second)
		}
	}
	next, err := k.fresh(now)
	if err != nil {
		return nil, err
	}
	behindTheLast(next.login)
	behindTheLast(next.store)
	return next, nil
}

// behindTheLast lets the last but one be the last.
func behindTheLast[T any](keys []T) {
	n := len(keys)
	keys[n-2], keys[n-1] = keys[n-1], keys[n-2]
}

// Promote returns a copy of k in which the newest key of each kind seals. Errors:
// ErrNothingToPromote.
func (k *Keyring) Promote() (*Keyring, error) {
	if !k.waiting() {
		return nil, ErrNothingToPromote
	}
	next := &Keyring{login: slices.Clone(k.login), store: slices.Clone(k.store)}
	slices.SortStableFunc(next.login, func(a, b loginKey) int { return a.created.Compare(b.created) })
	slices.SortStableFunc(next.store, func(a, b storeKey) int { return a.created.Compare(b.created) })
	return next, nil
}

// Retire returns a copy of k without the keys of these ids. Nothing that they sealed opens any
// more. Errors: ErrNoKey, ErrCurrent.
func (k *Keyring) Retire(ids ...string) (*Keyring, error) {
	keys := k.Keys()
	for _, id := range ids {
		switch {
		case !slices.ContainsFunc(keys, func(key KeyInfo) bool { return key.ID == id }):
			return nil, fmt.Errorf("%s: %w", id, ErrNoKey)
		case slices.ContainsFunc(keys, func(key KeyInfo) bool { return key.ID == id && key.Current }):
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

// Old lists the ids of the store keys that sealed before the present one did.
func (k *Keyring) Old() (ids []string) {
	for _, key := range k.Keys() {
		if key.Use == UseStore && !key.Current && !key.Next {
			ids = append(ids, key.ID)
		}
	}
	return ids
}

// waiting reports whether there are keys that are newer than those that seal.
func (k *Keyring) waiting() bool {
	return slices.ContainsFunc(k.Keys(), func(i KeyInfo) bool { return i.Next })
}

// fresh is a copy of k with one more key of each kind, which seal.
func (k *Keyring) fresh(now time.Time) (*Keyring, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate login key: %w", err)
	}
	master := make([]byte, masterSize)
	if _, err := rand.Read(master); err != nil {
		return nil, fmt.Errorf("generate store key: %w", err)
	}
	id, err := newKeyID()
	if err != nil {
		return nil, err
	}
	name := storeKeyName(id)
	return &Keyring{
		login: append(slices.Clone(k.login), loginKey{"login-" + name, now.UTC(), private}),
		store: append(slices.Clone(k.store), storeKey{id, now.UTC(), master}),
	}, nil
}

// newKeyID is random. Its name does not begin with a dash, which a command would take for a flag.
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

// Keys lists what is in the keyring, by kind and the oldest first.
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

// JWKS is the public key that logins are sealed to, as a JSON Web Key Set (RFC 7517): the current
// key only, so that nobody seals to one on its way out.
func (k *Keyring) JWKS() []byte {
	return k.login[len(k.login)-1].jwks()
}

// Published reports whether a key set is, to the byte, one that this keyring gives out, has given out
// or will. An id alone proves nothing: whoever writes a key chooses its id.
func (k *Keyring) Published(jwks []byte) bool {
	return slices.ContainsFunc(k.login, func(l loginKey) bool { return bytes.Equal(l.jwks(), jwks) })
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

// file is the keyring as it is kept.
type file struct {
	Version int         `json:"version"`
	Login   []fileLogin `json:"login"`
	Store   []fileStore `json:"store"`
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
		f.Login = append(f.Login, fileLogin{l.created, jose.JSONWebKey{Key: l.private, KeyID: l.id, Use: "enc", Algorithm: string(jose.ECDH_ES)}})
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

// ParseKeyring reads what Marshal wrote. Its errors wrap ErrKeyring and name the field at fault,
// never its value.
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
		return nil, fmt.Errorf("%w: version: %d: this renewd reads %d", ErrKeyring, f.Version, fileVersion)
	case len(f.Login) == 0 || len(f.Store) == 0:
		return nil, fmt.Errorf("%w: login, store: want at least one key each", ErrKeyring)
	}
	k := new(Keyring)
	for i, l := range f.Login {
		private, ok := l.Key.Key.(*ecdsa.PrivateKey)
		if !ok || private.Curve != elliptic.P256() || l.Key.KeyID == "" {
			return nil, fmt.Errorf("%w: login[%d].key: want a private P-256 key with a kid", ErrKeyring, i)
		}
		k.login = append(k.login, loginKey{l.Key.KeyID, l.Created, private})
	}
	for i, s := range f.Store {
		if len(s.ID) != keyIDSize || len(s.Master) != masterSize {
			return nil, fmt.Errorf("%w: store[%d]: want an id of %d and a master of %d bytes", ErrKeyring, i, keyIDSize, masterSize)
		}
		k.store = append(k.store, storeKey{string(s.ID), s.Created, s.Master})
	}
	return k, nil
}

// String hides the keys from logs.
func (k *Keyring) String() string {
	return fmt.Sprintf("keyring of %d keys", len(k.login)+len(k.store))
}

// GoString hides the keys from %#v.
func (k *Keyring) GoString() string { return k.String() }
