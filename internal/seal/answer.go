package seal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// ErrAnswerKey: a caller gave a key of an unsupported kind to seal an answer to. The text says what
// is wrong.
var ErrAnswerKey = errors.New("key")

// AnswerKey is the public key a caller made for one request. The answer is sealed to this key.
type AnswerKey struct{ public *ecdsa.PublicKey }

// maxAnswerKey is the largest JWK of an AnswerKey, in bytes.
const maxAnswerKey = 1024

// jwk is the part of a JSON Web Key (RFC 7517, RFC 7518 section 6.2) that ParseAnswerKey reads.
type jwk struct {
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
	D     string `json:"d,omitempty"`
	Use   string `json:"use,omitempty"`
	Alg   string `json:"alg,omitempty"`
}

// ParseAnswerKey reads a JWK: a public point on P-256 and nothing else. Its errors wrap
// ErrAnswerKey.
func ParseAnswerKey(raw []byte) (AnswerKey, error) {
	refuse := func(why string) (AnswerKey, error) {
		return AnswerKey{}, fmt.Errorf("%w: %s", ErrAnswerKey, why)
	}
	var k jwk
	switch {
	case len(raw) == 0:
		return refuse("missing: give the public key, a JWK, that the answer is to be sealed to")
	case len(raw) > maxAnswerKey:
		return refuse(fmt.Sprintf("%d bytes, at most %d", len(raw), maxAnswerKey))
	case json.Unmarshal(raw, &k) != nil:
		return refuse("no JSON Web Key")
	case k.Type != "EC" || k.Curve != "P-256":
		return refuse("want kty EC and crv P-256")
	case k.D != "":
		return refuse("a private key: make another one, and send the public part alone")
	case k.Use != "" && k.Use != "enc", k.Alg != "" && k.Alg != string(jose.ECDH_ES):
		return refuse("want use enc and alg " + string(jose.ECDH_ES) + ", or neither")
	}
	point := []byte{4} // uncompressed, SEC 1 section 2.3.3
	for _, coordinate := range []string{k.X, k.Y} {
		bytes, err := base64.RawURLEncoding.Strict().DecodeString(coordinate)
		if err != nil || len(bytes) != 32 {
			return refuse("x and y: want 32 bytes each in base64url")
		}
		point = append(point, bytes...)
	}
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return refuse("x and y are no point on P-256")
	}
	return AnswerKey{public}, nil
}

// SealAnswer seals plain, an answer about one user, to k.
func SealAnswer(k AnswerKey, provider, user string, plain []byte) (string, error) {
	options := new(jose.EncrypterOptions).WithContentType("json").
		WithHeader(headerIssuer, provider).WithHeader(headerSubject, user)
	to := jose.Recipient{Algorithm: jose.ECDH_ES, Key: k.public}
	e, err := jose.NewEncrypter(jose.A256GCM, to, options)
	if err != nil {
		return "", fmt.Errorf("seal answer: %w", err)
	}
	sealed, err := e.Encrypt(plain)
	if err != nil {
		return "", fmt.Errorf("seal answer: %w", err)
	}
	jwe, err := sealed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("seal answer: %w", err)
	}
	return jwe, nil
}

// Asker is the caller's side: a key pair for one request. Printing an Asker shows no key.
type Asker struct{ private *ecdsa.PrivateKey }

// NewAsker makes a key pair.
func NewAsker() (Asker, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Asker{}, fmt.Errorf("make a key to ask with: %w", err)
	}
	return Asker{private}, nil
}

// Format prints [redacted], whatever the verb.
func (a Asker) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[redacted]")) }

// JWK is the public key.
func (a Asker) JWK() (json.RawMessage, error) {
	point, err := a.private.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("key to ask with: %w", err)
	}
	text := base64.RawURLEncoding.EncodeToString
	key := jwk{Type: "EC", Curve: "P-256", X: text(point[1:33]), Y: text(point[33:])}
	raw, err := json.Marshal(key)
	if err != nil {
		return nil, fmt.Errorf("key to ask with: %w", err)
	}
	return raw, nil
}

// Open opens an answer about one user. Its error wraps ErrSealed: the answer was not sealed to this
// key, is about another user, or was changed since.
func (a Asker) Open(provider, user, jwe string) ([]byte, error) {
	if len(jwe) > MaxJWE {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrSealed, len(jwe), MaxJWE)
	}
	sealed, err := parse(jwe)
	if err != nil || sealed.Header.ExtraHeaders["zip"] != nil {
		return nil, fmt.Errorf("%w: no compact JWE with ECDH-ES and A256GCM", ErrSealed)
	}
	plain, err := sealed.Decrypt(a.private)
	if err != nil {
		return nil, fmt.Errorf("%w: changed since it was sealed, or not to this key", ErrSealed)
	}
	extra := sealed.Header.ExtraHeaders
	if extra[headerIssuer] != provider || extra[headerSubject] != user {
		return nil, fmt.Errorf("%w: it is about another user", ErrSealed)
	}
	return plain, nil
}
