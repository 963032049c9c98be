package seal

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/renewd/renewd/internal/secret"
)

// Tokens are a provider's tokens for a user who signed in.
type Tokens struct {
	Access    secret.Value
	Refresh   secret.Value // optional
	ID        secret.Value // optional
	Scope     string
	ExpiresIn time.Duration // of the access token, counting from the sealing; 0: see ExpiresAt
	ExpiresAt time.Time     // of the access token; zero: see ExpiresIn
}

// Login is an opened login: the tokens, their user, and the time of sealing.
type Login struct {
	Provider string
	User     string
	SealedAt time.Time
	Tokens
}

// MaxJWE is the largest sealed login, in bytes.
const MaxJWE = 60 << 10

// Claims replicated in the protected header (RFC 7519 section 5.3): readable without the key, and
// covered by the tag.
const (
	headerIssuer  = "iss" // the provider
	headerSubject = "sub" // the user
	headerIssued  = "iat" // the time of sealing, Unix seconds
)

type claims struct {
	Access    string          `json:"access_token"`
	Refresh   string          `json:"refresh_token,omitempty"`
	ID        string          `json:"id_token,omitempty"`
	Scope     string          `json:"scope,omitempty"`
	ExpiresIn json.RawMessage `json:"expires_in,omitempty"` // seconds, a number or numeric string
	ExpiresAt json.RawMessage `json:"expires_at,omitempty"` // Unix seconds or RFC 3339
}

// SealLogin seals t to the first encryption key of a JSON Web Key Set, for one user of one
// provider.
func SealLogin(jwks []byte, provider, user string, at time.Time, t Tokens) (string, error) {
	key, err := encryptionKey(jwks)
	if err != nil {
		return "", err
	}
	c := claims{
		Access:  t.Access.Reveal(),
		Refresh: t.Refresh.Reveal(),
		ID:      t.ID.Reveal(),
		Scope:   t.Scope,
	}
	if t.ExpiresIn > 0 {
		c.ExpiresIn = json.RawMessage(strconv.FormatInt(int64(t.ExpiresIn.Seconds()), 10))
	}
	if !t.ExpiresAt.IsZero() {
		c.ExpiresAt = json.RawMessage(strconv.FormatInt(t.ExpiresAt.Unix(), 10))
	}
	plain, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("seal login: %w", err)
	}
	options := new(jose.EncrypterOptions).WithContentType("json").
		WithHeader(headerIssuer, provider).WithHeader(headerSubject, user).
		WithHeader(headerIssued, at.Unix())
	e, err := jose.NewEncrypter(jose.A256GCM,
		jose.Recipient{Algorithm: jose.ECDH_ES, Key: key.Key, KeyID: key.KeyID}, options)
	if err != nil {
		return "", fmt.Errorf("seal login: the public key does not fit: %w", err)
	}
	sealed, err := e.Encrypt(plain)
	if err != nil {
		return "", fmt.Errorf("seal login: %w", err)
	}
	jwe, err := sealed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("seal login: %w", err)
	}
	if len(jwe) > MaxJWE {
		return "", fmt.Errorf("seal login: tokens: %d bytes when sealed, "+
			"at most %d fit into a message", len(jwe), MaxJWE)
	}
	return jwe, nil
}

// CheckPins refuses a key set if its encryption key has none of these SHA-256 thumbprints (RFC
// 7638), in base64url. Its error wraps ErrPin.
func CheckPins(jwks []byte, pins []string) error {
	key, err := encryptionKey(jwks)
	if err != nil {
		return err
	}
	got, err := thumbprint(key)
	if err != nil {
		return err
	}
	if !slices.Contains(pins, got) {
		return fmt.Errorf("%w: it is %s", ErrPin, got)
	}
	return nil
}

func thumbprint(key jose.JSONWebKey) (string, error) {
	sum, err := key.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("thumbprint: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

func encryptionKey(jwks []byte) (jose.JSONWebKey, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return jose.JSONWebKey{}, errors.New("seal login: the public key is no JSON Web Key Set")
	}
	for _, key := range set.Keys {
		if key.Use == "enc" && key.KeyID != "" && key.IsPublic() && key.Valid() {
			return key, nil
		}
	}
	return jose.JSONWebKey{}, errors.New(
		"seal login: the JSON Web Key Set has no public key with use enc and a kid",
	)
}

// OpenLogin opens a login sealed to any key of the keyring. Only ECDH-ES with A256GCM,
// uncompressed, is taken. The caller compares Provider, User and SealedAt with the event that
// carried the login. Errors: ErrUnknownKey, ErrSealed.
func (k *Keyring) OpenLogin(jwe string) (Login, error) {
	if len(jwe) > MaxJWE {
		return Login{}, fmt.Errorf("%w: %d bytes, at most %d", ErrSealed, len(jwe), MaxJWE)
	}
	sealed, err := parse(jwe)
	if err != nil {
		return Login{}, fmt.Errorf("%w: no compact JWE with ECDH-ES and A256GCM", ErrSealed)
	}
	if sealed.Header.ExtraHeaders["zip"] != nil {
		return Login{}, fmt.Errorf("%w: compressed; send it without zip", ErrSealed)
	}
	key, err := k.loginKey(sealed.Header.KeyID)
	if err != nil {
		return Login{}, err
	}
	plain, err := sealed.Decrypt(key.private)
	if err != nil {
		return Login{}, fmt.Errorf("%w: changed since it was sealed, or not to this key", ErrSealed)
	}
	l, err := header(sealed.Header)
	if err != nil {
		return Login{}, err
	}
	l.Tokens, err = parseClaims(plain)
	return l, err
}

// parse takes a JWE in the only form that logins have.
func parse(jwe string) (*jose.JSONWebEncryption, error) {
	return jose.ParseEncryptedCompact(
		jwe, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM},
	)
}

// LoginKeyOf returns the id of the login key that a login was sealed to, according to its header.
// Nothing proves the id before the login is opened. The id is empty if jwe is not a sealed login.
func LoginKeyOf(jwe string) (id string) {
	if len(jwe) > MaxJWE {
		return ""
	}
	sealed, err := parse(jwe)
	if err != nil {
		return ""
	}
	return sealed.Header.KeyID
}

func (k *Keyring) loginKey(id string) (loginKey, error) {
	for _, key := range k.login {
		if key.id == id {
			return key, nil
		}
	}
	return loginKey{}, fmt.Errorf("%w: kid; fetch renewd's public key again and seal again",
		ErrUnknownKey)
}

func header(h jose.Header) (Login, error) {
	provider, _ := h.ExtraHeaders[headerIssuer].(string)
	user, _ := h.ExtraHeaders[headerSubject].(string)
	issued, ok := h.ExtraHeaders[headerIssued].(float64)
	if provider == "" || user == "" || !ok || issued <= 0 || issued > math.MaxInt32*64 {
		return Login{}, fmt.Errorf("%w: the protected header needs iss (provider), "+
			"sub (user) and iat (Unix seconds)", ErrSealed)
	}
	return Login{Provider: provider, User: user, SealedAt: time.Unix(int64(issued), 0).UTC()}, nil
}

func parseClaims(plain []byte) (Tokens, error) {
	var c claims
	if err := json.Unmarshal(plain, &c); err != nil {
		return Tokens{}, fmt.Errorf("%w: the sealed part is no JSON object of strings", ErrSealed)
	}
	if c.Access == "" {
		return Tokens{}, fmt.Errorf("%w: access_token is missing in the sealed part", ErrSealed)
	}
	t := Tokens{
		Access:  secret.New(c.Access),
		Refresh: secret.New(c.Refresh),
		ID:      secret.New(c.ID),
		Scope:   c.Scope,
	}
	if given(c.ExpiresIn) {
		seconds, ok := number(c.ExpiresIn)
		if !ok || seconds < 0 || seconds > math.MaxInt32 {
			return Tokens{}, fmt.Errorf("%w: expires_in: want seconds", ErrSealed)
		}
		t.ExpiresIn = time.Duration(seconds * float64(time.Second))
	}
	if given(c.ExpiresAt) {
		if seconds, ok := number(c.ExpiresAt); ok && seconds > 0 && seconds < math.MaxInt32*64 {
			t.ExpiresAt = time.Unix(int64(seconds), 0).UTC()
		} else if at, err := time.Parse(time.RFC3339,
			string(bytes.Trim(c.ExpiresAt, `"`))); err == nil {
			t.ExpiresAt = at.UTC()
		} else {
			return Tokens{}, fmt.Errorf("%w: expires_at: want Unix seconds or RFC 3339", ErrSealed)
		}
	}
	return t, nil
}

func given(raw json.RawMessage) bool {
	return len(raw) > 0 && string(raw) != "null" && string(raw) != `""`
}

func number(raw json.RawMessage) (float64, bool) {
	f, err := strconv.ParseFloat(string(bytes.Trim(raw, `"`)), 64)
	return f, err == nil && !math.IsNaN(f)
}
