package webhook

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/schema"
)

// SET has outcomes sent as Security Event Tokens (RFC 8417) with CAEP 1.0's events, pushed as RFC
// 8935 has it.
type SET struct {
	// Issuer is renewd's name to the receiver (iss), an https:// address. Required.
	Issuer string
	// Audience is the receiver's name (aud). Required.
	Audience string
	// Key signs: PEM with an RSA key of 2048 bits or more (RS256), or a key on P-256 (ES256).
	// Required.
	Key secret.Value
	// Subjects is the issuer of each provider's users, by the provider's id.
	Subjects map[string]string
}

// check names the first wrong field, as the settings have it.
func (s SET) check() error {
	if u, err := url.Parse(s.Issuer); err != nil || u.Scheme != "https" || u.Host == "" {
		return errors.New("set_issuer: want an https:// address that names renewd to the receiver")
	}
	if s.Audience == "" {
		return errors.New("set_audience: missing: the receiver's name")
	}
	if _, err := signingJWK(s.Key); err != nil {
		return fmt.Errorf("set_key: %w", err)
	}
	return nil
}

// signingJWK reads a private key. The key's id is its thumbprint (RFC 7638). The error shows
// nothing of the key.
func signingJWK(key secret.Value) (*jose.JSONWebKey, error) {
	bad := errors.New("want a private key in PEM form, as from: openssl genpkey -algorithm EC " +
		"-pkeyopt ec_paramgen_curve:P-256")
	block, _ := pem.Decode([]byte(key.Reveal()))
	if block == nil {
		return nil, bad
	}
	var private any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		private, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		private, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		private, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, bad // the parser's own words may quote the key
	}
	j := &jose.JSONWebKey{Key: private, Use: "sig"}
	switch k := private.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 2048 {
			return nil, errors.New("an RSA key needs 2048 bits or more")
		}
		j.Algorithm = string(jose.RS256)
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, errors.New("of the curves, receivers know P-256")
		}
		j.Algorithm = string(jose.ES256)
	default:
		return nil, bad
	}
	sum, err := j.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, bad
	}
	j.KeyID = base64.RawURLEncoding.EncodeToString(sum)
	return j, nil
}

// PublicKeys is the JWK Set (RFC 7517) that verifies key's signatures, for the receiver.
func PublicKeys(key secret.Value) ([]byte, error) {
	j, err := signingJWK(key)
	if err != nil {
		return nil, err
	}
	return json.MarshalIndent(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{j.Public()}}, "", "  ")
}

// setter makes Security Event Tokens. A setter is safe for concurrent use.
type setter struct {
	SET
	signer jose.Signer
}

func newSetter(s SET) (*setter, error) {
	j, err := signingJWK(s.Key)
	if err != nil {
		return nil, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.SignatureAlgorithm(j.Algorithm), Key: j,
	}, new(jose.SignerOptions).WithType("secevent+jwt")) // RFC 8417, section 2.3
	if err != nil {
		return nil, errors.New("the key cannot sign")
	}
	return &setter{s, signer}, nil
}

// The events of CAEP 1.0 that outcomes are sent as.
const (
	sessionRevoked    = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
	tokenClaimsChange = "https://schemas.openid.net/secevent/caep/event-type/token-claims-change"
)

// token is the claims of a SET (RFC 8417, section 2.2).
type token struct {
	Issuer   string         `json:"iss"`
	ID       string         `json:"jti"`
	IssuedAt int64          `json:"iat"`
	Audience string         `json:"aud"`
	Subject  subject        `json:"sub_id"` // RFC 9493
	Events   map[string]any `json:"events"`
}

// subject names a user: by the provider's issuer and the id there, or, where the provider has no
// issuer, by renewd's id of the provider and the user's id with a colon between.
type subject struct {
	Format  string `json:"format"`
	Issuer  string `json:"iss,omitempty"`
	Subject string `json:"sub,omitempty"`
	ID      string `json:"id,omitempty"`
}

// happening is the content of an event (CAEP 1.0, section 2).
type happening struct {
	At     int64                      `json:"event_timestamp"`
	By     string                     `json:"initiating_entity,omitempty"`
	Reason map[string]string          `json:"reason_admin,omitempty"`
	Claims map[string]json.RawMessage `json:"claims,omitempty"`
}

// encode signs an outcome as a SET; empty: CAEP has no event for the outcome.
func (s *setter) encode(e schema.Event, now time.Time) (string, error) {
	name, what, err := caep(e)
	if name == "" || err != nil {
		return "", err
	}
	who := subject{Format: "opaque", ID: e.Provider + ":" + e.User}
	if issuer := s.Subjects[e.Provider]; issuer != "" {
		who = subject{Format: "iss_sub", Issuer: issuer, Subject: e.User}
	}
	claims, err := json.Marshal(token{
		Issuer: s.Issuer, ID: e.ID, IssuedAt: now.Unix(), Audience: s.Audience, Subject: who,
		Events: map[string]any{name: what},
	})
	if err != nil {
		return "", err
	}
	signed, err := s.signer.Sign(claims)
	if err != nil {
		return "", errors.New("the key did not sign")
	}
	return signed.CompactSerialize()
}

// caep is an outcome as an event of CAEP; an empty name: CAEP has no event for the outcome.
func caep(e schema.Event) (name string, what happening, err error) {
	what.At = e.Time.Unix()
	switch e.Type {
	case schema.UserReauthRequired, schema.UserSignedOut, schema.UserSuspended:
		var data struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(e.Data, &data); err != nil {
			return "", what, errors.New("the outcome's data cannot be read")
		}
		if data.Reason != "" {
			what.Reason = map[string]string{"en": data.Reason}
		}
		if e.Type == schema.UserSuspended {
			what.By = "admin"
		}
		return sessionRevoked, what, nil
	case schema.UserForgotten:
		what.By = "admin"
		return sessionRevoked, what, nil
	case schema.UserSynced:
		what.Claims, err = changed(e.Data)
		if len(what.Claims) > 0 {
			return tokenClaimsChange, what, err
		}
	}
	return "", what, err
}

// claimOf are OpenID Connect's names of a profile's members where they differ (Core, section 5.1).
var claimOf = map[string]string{
	"first_name": "given_name", "last_name": "family_name", "username": "preferred_username",
}

// changed are the claims that a user.synced lists as changed, with their new values; null: the
// claim has no value any more. Claims are missing where policy.show_profile hides the values, or a
// member was too large.
func changed(data json.RawMessage) (map[string]json.RawMessage, error) {
	var synced struct {
		Changed []string                   `json:"changed"`
		Profile map[string]json.RawMessage `json:"profile"`
	}
	if err := json.Unmarshal(data, &synced); err != nil {
		return nil, errors.New("the outcome's data cannot be read")
	}
	if synced.Profile == nil {
		return nil, nil
	}
	hidden := map[string]bool{"raw": true} // the provider's own JSON is no claim
	var omitted []string
	if json.Unmarshal(synced.Profile["omitted"], &omitted) == nil {
		for _, name := range omitted {
			hidden[name] = true
		}
	}
	claims := map[string]json.RawMessage{}
	for _, name := range synced.Changed {
		if hidden[name] {
			continue
		}
		value := synced.Profile[name]
		if value == nil {
			value = json.RawMessage("null")
		}
		if claim := claimOf[name]; claim != "" {
			name = claim
		}
		claims[name] = value
	}
	return claims, nil
}

// refusals are the error codes of RFC 8935, section 2.4. All but the first are about the settings,
// and would meet each SET.
var refusals = map[string]sink.Blame{
	"invalid_request":       sink.Refused,
	"invalid_key":           sink.Unreachable,
	"invalid_issuer":        sink.Unreachable,
	"invalid_audience":      sink.Unreachable,
	"authentication_failed": sink.Unreachable,
	"access_denied":         sink.Unreachable,
}

// refusal is the fault that a receiver's 400 names; nil: no known code.
func refusal(body []byte) *sink.Fault {
	var said struct {
		Err string `json:"err"`
	}
	if json.Unmarshal(body, &said) != nil || refusals[said.Err] == "" {
		return nil
	}
	return &sink.Fault{Blame: refusals[said.Err], Err: fmt.Errorf("answered 400: %s", said.Err)}
}
