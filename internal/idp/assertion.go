package idp

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// assertionLife is how long a signed assertion is valid: long enough for a call on its way, and for
// clocks that differ.
const assertionLife = time.Minute

// asserter names the client by a signature: private_key_jwt (OpenID Connect Core section 9, RFC
// 7523). The private key never leaves this process. Safe for concurrent use.
type asserter struct {
	client string
	signer jose.Signer
}

// newAsserter reads a private key: PEM (PKCS #8, PKCS #1 or SEC 1) or a JSON Web Key. id is the
// key's id at the provider. Without id the JWK's own id counts, else the key's thumbprint (RFC
// 7638). The errors never quote the key.
func newAsserter(client, text, id string) (*asserter, error) {
	key, err := parseKey(text)
	if err != nil {
		return nil, err
	}
	if id != "" {
		key.KeyID = id
	}
	if key.KeyID == "" {
		sum, err := key.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, errors.New("want an RSA, EC or Ed25519 key")
		}
		key.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	}
	algorithm := jose.SignatureAlgorithm(key.Algorithm)
	if algorithm == "" {
		algorithm = algorithmOf(key.Key)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: key},
		new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("no key to sign with by %s", algorithm)
	}
	return &asserter{client, signer}, nil
}

func parseKey(text string) (key jose.JSONWebKey, _ error) {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "{") {
		if key.UnmarshalJSON([]byte(text)) != nil || key.IsPublic() || !key.Valid() {
			return key, errors.New("no private JSON Web Key")
		}
		return key, nil
	}
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return key, errors.New("neither PEM nor a JSON Web Key")
	}
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key.Key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key.Key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key.Key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return key, fmt.Errorf("PEM %q holds no private key that can be read", block.Type)
	}
	return key, nil
}

// algorithmOf is the signature algorithm every server takes for a kind of key.
func algorithmOf(key any) jose.SignatureAlgorithm {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return jose.RS256
	case ed25519.PrivateKey:
		return jose.EdDSA
	case *ecdsa.PrivateKey:
		switch k.Curve {
		case elliptic.P384():
			return jose.ES384
		case elliptic.P521():
			return jose.ES512
		}
	}
	return jose.ES256
}

// assert makes an assertion for a single call of an endpoint. now is the provider's time, as far as
// the provider's clock is known.
func (a *asserter) assert(endpoint string, now time.Time) (string, error) {
	claims, err := json.Marshal(map[string]any{
		"iss": a.client,
		"sub": a.client,
		"aud": endpoint,
		"jti": rand.Text(),
		"iat": now.Unix(),
		"exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", err
	}
	signed, err := a.signer.Sign(claims)
	if err != nil {
		return "", errors.New("the client's assertion cannot be signed")
	}
	return signed.CompactSerialize()
}
