package seal

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// An offline root signs a key set, so that publishers need not trust NATS for it. The set is a
// signed JWK Set as in OpenID Federation 1.0 (section 5.2.1): a JWT with the claims keys, iat and
// exp. The root is an Ed25519 key (RFC 8037), which no worker has.

// ErrRoot: a key set is not signed, or not by a trusted root, or its time is over.
var ErrRoot = errors.New("the public keys are not signed by a trusted root")

const (
	signedType = "jwk-set+jwt"
	maxSigned  = 64 << 10
)

// signedClaims are the claims that a root signs.
type signedClaims struct {
	Keys    json.RawMessage `json:"keys"`
	Issued  int64           `json:"iat"` // Unix seconds
	Expires int64           `json:"exp"`
}

// NewRoot returns a fresh root. private is a JSON Web Key to be kept offline, public is the public
// key as given to publishers (32 bytes in base64url).
func NewRoot() (private []byte, public string, err error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("generate root: %w", err)
	}
	private, err = json.Marshal(jose.JSONWebKey{
		Key:       key,
		Use:       "sig",
		Algorithm: string(jose.EdDSA),
	})
	if err != nil {
		return nil, "", fmt.Errorf("encode root: %w", err)
	}
	return private, rootName(key.Public().(ed25519.PublicKey)), nil
}

func rootName(public ed25519.PublicKey) string {
	return base64.RawURLEncoding.EncodeToString(public)
}

// CheckRoot names the fault of a public root.
func CheckRoot(public string) error {
	raw, err := base64.RawURLEncoding.DecodeString(public)
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return fmt.Errorf("%q is no public root: want what renewd keys root new prints", public)
	}
	return nil
}

// SignKeys signs a JSON Web Key Set with a private root. The signature lasts for life from now.
// Errors say what is wrong with the root or the set.
func SignKeys(private, jwks []byte, now time.Time, life time.Duration) (string, error) {
	var root jose.JSONWebKey
	if json.Unmarshal(private, &root) != nil {
		return "", errors.New("sign keys: the root is no JSON Web Key")
	}
	key, ok := root.Key.(ed25519.PrivateKey)
	if !ok {
		return "", errors.New("sign keys: the root is no private Ed25519 key")
	}
	if _, err := encryptionKey(jwks); err != nil {
		return "", fmt.Errorf("sign keys: %w", err)
	}
	var set struct {
		Keys []jose.JSONWebKey `json:"keys"`
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		return "", errors.New("sign keys: no JSON Web Key Set")
	}
	if slices.ContainsFunc(set.Keys, func(k jose.JSONWebKey) bool { return !k.IsPublic() }) {
		return "", errors.New("sign keys: the set has a private key in it")
	}
	keys, err := json.Marshal(set.Keys)
	if err != nil {
		return "", fmt.Errorf("sign keys: %w", err)
	}
	claims, err := json.Marshal(signedClaims{keys, now.Unix(), now.Add(life).Unix()})
	if err != nil {
		return "", fmt.Errorf("sign keys: %w", err)
	}
	name := rootName(key.Public().(ed25519.PublicKey))
	options := new(jose.SignerOptions).WithType(signedType).WithHeader("kid", name)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: key}, options)
	if err != nil {
		return "", fmt.Errorf("sign keys: %w", err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return "", fmt.Errorf("sign keys: %w", err)
	}
	return signed.CompactSerialize()
}

// Signed is a key set whose signature was checked.
type Signed struct {
	JWKS  []byte
	Root  string    // the public root that signed the set
	Until time.Time // when the set expires
}

// OpenSigned checks a signed key set: one of these public roots must have signed the set, and its
// time must not be over. Without roots OpenSigned takes the root named in the set itself, which
// proves only that the set is whole. Errors wrap ErrRoot.
func OpenSigned(signed []byte, now time.Time, roots ...string) (Signed, error) {
	refuse := func(why string) (Signed, error) {
		return Signed{}, fmt.Errorf("%w: %s", ErrRoot, why)
	}
	signed = bytes.TrimSpace(signed)
	if len(signed) > maxSigned {
		return refuse("the set is too long")
	}
	jws, err := jose.ParseSignedCompact(string(signed), []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		return refuse("it is no signed key set")
	}
	header := jws.Signatures[0].Protected
	if header.ExtraHeaders[jose.HeaderType] != signedType {
		return refuse("what is signed is something else")
	}
	root := header.KeyID
	if CheckRoot(root) != nil || len(roots) > 0 && !slices.Contains(roots, root) {
		return refuse("another root signed it")
	}
	public, _ := base64.RawURLEncoding.DecodeString(root)
	payload, err := jws.Verify(ed25519.PublicKey(public))
	if err != nil {
		return refuse("the signature is wrong")
	}
	var claims signedClaims
	if json.Unmarshal(payload, &claims) != nil || claims.Expires == 0 {
		return refuse("it has no keys or no expiry")
	}
	until := time.Unix(claims.Expires, 0)
	if !now.Before(until) {
		return refuse("it expired at " + until.UTC().Format(time.RFC3339) + ": sign the keys again")
	}
	jwks, err := json.Marshal(map[string]json.RawMessage{"keys": claims.Keys})
	if err != nil {
		return refuse("its keys are malformed")
	}
	return Signed{JWKS: jwks, Root: root, Until: until}, nil
}
