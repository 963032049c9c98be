package standin

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// Signing is the kind of access tokens.
type Signing string

// The kinds, by the cost of making a token.
const (
	ES256  Signing = "ES256"  // a JWT that any caller can verify by the JWKS: some 20 µs
	RS256  Signing = "RS256"  // the same as at PropelAuth, with 2048 bits: some 1 ms
	Opaque Signing = "opaque" // no JWT; its expiry is in the answer alone: 1 µs
)

// signer makes access tokens. A signer is not changed once made, and safe for concurrent use.
type signer struct {
	alg Signing
	key crypto.Signer // nil for Opaque
	kid string
}

func newSigner(alg Signing) (*signer, error) {
	var key crypto.Signer
	var err error
	switch alg {
	case ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RS256:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case Opaque:
		return &signer{alg: alg}, nil
	default:
		err = fmt.Errorf("signing: %q: want ES256, RS256 or opaque", alg)
	}
	if err != nil {
		return nil, err
	}
	return signerOf(key)
}

func signerOf(key crypto.Signer) (*signer, error) {
	s := &signer{key: key, alg: RS256}
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		s.alg = ES256
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	s.kid = base64.RawURLEncoding.EncodeToString(sum[:9])
	return s, nil
}

// parseSigner reads the output of marshal.
func parseSigner(der []byte) (*signer, error) {
	if len(der) == 0 {
		return &signer{alg: Opaque}, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	k, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("not a key to sign with")
	}
	return signerOf(k)
}

func (s *signer) marshal() ([]byte, error) {
	if s.key == nil {
		return nil, nil
	}
	return x509.MarshalPKCS8PrivateKey(s.key)
}

// jwt signs claims (RFC 7515, RFC 7518 section 3).
func (s *signer) jwt(claims any) string {
	head := encode(map[string]string{"alg": string(s.alg), "kid": s.kid, "typ": "JWT"}) + "." +
		encode(claims)
	sum := sha256.Sum256([]byte(head))
	var signature []byte
	var err error
	switch key := s.key.(type) {
	case *rsa.PrivateKey:
		signature, err = rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	case *ecdsa.PrivateKey:
		var r, t *big.Int
		if r, t, err = ecdsa.Sign(rand.Reader, key, sum[:]); err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), t.FillBytes(make([]byte, 32))...)
		}
	}
	if err != nil {
		panic("standin: sign: " + err.Error()) // the keys are our own
	}
	return head + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func encode(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic("standin: " + err.Error()) // plain maps and structs
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// jwks is the public key (RFC 7517).
func (s *signer) jwks() map[string]any {
	number := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	key := map[string]string{"use": "sig", "alg": string(s.alg), "kid": s.kid}
	switch k := s.key.(type) {
	case *rsa.PrivateKey:
		key["kty"], key["n"], key["e"] = "RSA", number(k.N.Bytes()),
			number(big.NewInt(int64(k.E)).Bytes())
	case *ecdsa.PrivateKey:
		point, err := k.PublicKey.Bytes() // 4, X, Y
		if err != nil {
			panic("standin: " + err.Error()) // the keys are our own
		}
		key["kty"], key["crv"], key["x"], key["y"] = "EC", "P-256", number(point[1:33]),
			number(point[33:])
	default:
		return map[string]any{"keys": []any{}}
	}
	return map[string]any{"keys": []any{key}}
}

// claims of an access token, as PropelAuth's OAuth clients get the claims, and the id this server
// knows its tokens by.
type claims struct {
	Issuer   string `json:"iss,omitempty"`
	Subject  string `json:"sub"`
	Audience string `json:"aud"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

// access makes an access token from its ticket.
func (s *signer) access(t ticket, issuer, audience, id string, lifetime time.Duration) string {
	if s.key == nil {
		return id
	}
	return s.jwt(claims{
		Issuer:   issuer,
		Subject:  t.user,
		Audience: audience,
		IssuedAt: t.at.Unix(),
		Expires:  t.at.Add(lifetime).Unix(),
		ID:       id,
	})
}

// idOf is the id inside an access token. The signature is for other readers: the id is itself a
// MAC.
func idOf(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return token
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c claims
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return ""
	}
	return c.ID
}

// mac is short: it only has to keep tests from making tokens up.
func mac(secret []byte, head string) string {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(head))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}
