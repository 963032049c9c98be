package clients

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/schema"
)

// Right is an action that a client may do.
type Right string

// The rights of clients.
const (
	// Login: publish logins.
	Login Right = "login"
	// Logout: sign users out.
	Logout Right = "logout"
	// Refresh: ask for a renewal.
	Refresh Right = "refresh"
	// Read: see a user's state and profile, and all outcomes.
	Read Right = "read"
	// Token: read access tokens.
	Token Right = "token"
	// Admin: erase, suspend and resume users.
	Admin Right = "admin"
)

// Rights are all rights.
func Rights() []Right { return []Right{Login, Logout, Refresh, Read, Token, Admin} }

// Client is a service that uses renewd over HTTP.
type Client struct {
	Name      string    // 1 to 32 of a-z, 0-9 and -
	May       []Right   // at least one
	Providers []string  // ids; empty: all providers
	CreatedAt time.Time // UTC
	digest    [sha256.Size]byte
}

// MayDo reports whether the client has the right for a provider. An empty provider stands for all
// providers: only a client that is not bound to providers has the right for all.
func (c Client) MayDo(r Right, provider string) bool {
	return slices.Contains(c.May, r) &&
		(len(c.Providers) == 0 || slices.Contains(c.Providers, provider))
}

// secretBytes are drawn for a secret: 256 bits, so that its digest without salt or stretching is
// enough.
const secretBytes = 32

// secretPrefix lets scanners of repositories recognise a secret of renewd's.
const secretPrefix = "renewd_"

// New makes a client and its secret, which is shown to its owner and kept nowhere. The error names
// the wrong argument.
func New(name string, may []Right, providers []string, now time.Time) (Client, string, error) {
	c := Client{
		Name:      name,
		May:       may,
		Providers: providers,
		CreatedAt: now.UTC().Truncate(time.Second),
	}
	if err := c.check(); err != nil {
		return Client{}, "", err
	}
	key := make([]byte, secretBytes)
	_, _ = rand.Read(key) // never fails, see crypto/rand
	secret := secretPrefix + name + "." + base64.RawURLEncoding.EncodeToString(key)
	c.digest = sha256.Sum256([]byte(secret))
	return c, secret, nil
}

// Standing is a client of which the settings hold the digest (Digest). Its error names what is
// wrong with the arguments.
func Standing(name string, may []Right, providers []string, digest string) (Client, error) {
	c := Client{Name: name, May: may, Providers: providers}
	if err := c.check(); err != nil {
		return Client{}, err
	}
	sum, err := base64.RawURLEncoding.DecodeString(digest)
	if err != nil || len(sum) != sha256.Size {
		return Client{}, errors.New("digest: want what renewd clients add --settings prints")
	}
	c.digest = [sha256.Size]byte(sum)
	return c, nil
}

// Digest is what the settings hold of the client's secret. Who knows it does not know the secret.
func (c Client) Digest() string { return base64.RawURLEncoding.EncodeToString(c.digest[:]) }

func (c Client) check() error {
	if err := schema.CheckSender(c.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if len(c.May) == 0 {
		return fmt.Errorf("may: want at least one of %s", rightList())
	}
	for _, r := range c.May {
		if !slices.Contains(Rights(), r) {
			return fmt.Errorf("may %q: want one of %s", r, rightList())
		}
	}
	for _, p := range c.Providers {
		if err := schema.CheckProvider(p); err != nil {
			return fmt.Errorf("provider: %w", err)
		}
	}
	return nil
}

func rightList() string {
	var all []string
	for _, r := range Rights() {
		all = append(all, string(r))
	}
	return strings.Join(all, ", ")
}

// nameIn is the client's name in a secret; false if the text is not a secret of renewd's.
func nameIn(secret string) (string, bool) {
	rest, ok := strings.CutPrefix(secret, secretPrefix)
	name, key, found := strings.Cut(rest, ".")
	return name, ok && found && len(key) == base64.RawURLEncoding.EncodedLen(secretBytes)
}

// matches compares in a time that tells nothing of the secret.
func (c Client) matches(secret string) bool {
	given := sha256.Sum256([]byte(secret))
	return subtle.ConstantTimeCompare(given[:], c.digest[:]) == 1
}

// record is a client as stored.
type record struct {
	Version   int       `json:"v"`
	May       []Right   `json:"may"`
	Providers []string  `json:"providers,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Digest    []byte    `json:"digest"`
}

const recordVersion = 1

func (c Client) encode() ([]byte, error) {
	return json.Marshal(record{
		Version:   recordVersion,
		May:       c.May,
		Providers: c.Providers,
		CreatedAt: c.CreatedAt,
		Digest:    c.digest[:],
	})
}

// decode reads a stored client. A right of a later version stays in the client, and allows nothing
// here.
func decode(name string, stored []byte) (Client, error) {
	var r record
	if err := json.Unmarshal(stored, &r); err != nil {
		return Client{}, fmt.Errorf("client %s: %w", name, err)
	}
	if r.Version != recordVersion {
		return Client{}, fmt.Errorf(
			"client %s: stored in form %d, want %d: by a later version of renewd?",
			name,
			r.Version,
			recordVersion,
		)
	}
	c := Client{Name: name, May: r.May, Providers: r.Providers, CreatedAt: r.CreatedAt}
	if copy(c.digest[:], r.Digest) != sha256.Size {
		return Client{}, errors.New("client " + name + ": no digest of a secret is stored")
	}
	return c, nil
}
