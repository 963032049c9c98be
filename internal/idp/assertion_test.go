package idp_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

func pemOf(t *testing.T, kind string, der []byte, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// asserted is a provider that takes assertions signed with one key, once each.
type asserted struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]bool
	kids []string
}

func newAsserted(t *testing.T, public any, algorithm jose.SignatureAlgorithm) *asserted {
	t.Helper()
	a := &asserted{seen: map[string]bool{}}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		w.Header().Set("Content-Type", "application/json")
		if why := a.refuses(r, public, algorithm); why != "" {
			t.Errorf("%s: %s", r.URL.Path, why)
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
			return
		}
		_, _ = w.Write([]byte(`{"access_token":"a","refresh_token":"r2","expires_in":60}`))
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *asserted) refuses(r *http.Request, public any, algorithm jose.SignatureAlgorithm) string {
	f := r.PostForm
	if f.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" ||
		f.Get("client_secret") != "" || r.Header.Get("Authorization") != "" {
		return "another way of authentication"
	}
	signed, err := jose.ParseSignedCompact(f.Get("client_assertion"),
		[]jose.SignatureAlgorithm{algorithm})
	if err != nil {
		return err.Error()
	}
	raw, err := signed.Verify(public)
	if err != nil {
		return err.Error()
	}
	var c struct {
		Iss, Sub, Aud, Jti string
		Iat, Exp           int64
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return err.Error()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch now := time.Now().Unix(); {
	case c.Iss != "c1" || c.Sub != "c1" || f.Get("client_id") != "c1":
		return "another client"
	case c.Aud != a.URL+"/token":
		return "for " + c.Aud
	case c.Exp < now || c.Exp > now+120 || c.Iat > now+5:
		return "out of its time"
	case c.Jti == "" || a.seen[c.Jti]:
		return "shown before"
	}
	a.seen[c.Jti] = true
	a.kids = append(a.kids, signed.Signatures[0].Header.KeyID)
	return ""
}

func keyed(a *asserted, key, id string) idp.Config {
	return idp.Config{
		ID:                "acme",
		Preset:            "oidc",
		TokenURL:          a.URL + "/token",
		UserInfoURL:       a.URL + "/userinfo",
		RevokeURL:         a.URL + "/revoke",
		ClientID:          "c1",
		ClientKey:         secret.New(key),
		ClientKeyID:       id,
		AllowHTTPLoopback: true,
	}
}

// A client with a key signs each call afresh, whatever the form of the key (RFC 7523).
func TestAClientNamesItselfByItsKey(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk, err := json.Marshal(jose.JSONWebKey{Key: rsaKey, KeyID: "own", Algorithm: "PS256"})
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key any) string {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		return pemOf(t, "PRIVATE KEY", der, err)
	}
	sec1, err := x509.MarshalECPrivateKey(ecKey)
	for name, c := range map[string]struct {
		key       string
		id        string
		public    any
		algorithm jose.SignatureAlgorithm
		kid       string
	}{
		"RSA, PKCS #1": {
			pemOf(t, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), "k1",
			&rsaKey.PublicKey, jose.RS256, "k1",
		},
		"RSA, PKCS #8": {pkcs8(rsaKey), "", &rsaKey.PublicKey, jose.RS256, ""},
		"P-256, SEC 1": {
			pemOf(t, "EC PRIVATE KEY", sec1, err), "", &ecKey.PublicKey, jose.ES256, "",
		},
		"P-384, PKCS #8":  {pkcs8(p384), "", &p384.PublicKey, jose.ES384, ""},
		"Ed25519":         {pkcs8(edKey), "", edPublic, jose.EdDSA, ""},
		"a JSON Web Key":  {string(jwk), "", &rsaKey.PublicKey, jose.PS256, "own"},
		"its id replaced": {string(jwk), "other", &rsaKey.PublicKey, jose.PS256, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAsserted(t, c.public, c.algorithm)
			p, err := idp.New(keyed(a, c.key, c.id), idp.Telemetry{})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			for range 2 {
				if got, err := p.Refresh(t.Context(), secret.New("r1")); err != nil ||
					got.Refresh.Reveal() != "r2" {
					t.Errorf("refresh: %v", err)
				}
			}
			if err := p.Revoke(t.Context(), secret.New("r2")); err != nil {
				t.Errorf("revoke: %v", err)
			}
			if len(a.kids) != 3 || a.kids[0] == "" || c.kid != "" && a.kids[0] != c.kid {
				t.Errorf("key ids %q, want %q", a.kids, c.kid)
			}
		})
	}
}

func TestAClientKeyThatDoesNotFitIsNamed(t *testing.T) {
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good, err := json.Marshal(jose.JSONWebKey{Key: ecKey})
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(jose.JSONWebKey{Key: &ecKey.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	a := &asserted{Server: httptest.NewServer(http.NotFoundHandler())}
	defer a.Close()
	for says, change := range map[string]func(*idp.Config){
		"client_key: neither PEM": func(c *idp.Config) { c.ClientKey = secret.New("hunter2") },
		"client_key: PEM": func(c *idp.Config) {
			c.ClientKey = secret.New("-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END " +
				"PRIVATE KEY-----")
		},
		"client_key: no private JSON": func(c *idp.Config) {
			c.ClientKey = secret.New(string(public))
		},
		"client_key: no key to sign": func(c *idp.Config) {
			c.ClientKey = secret.New(strings.Replace(string(good), "{", `{"alg":"RS256",`, 1))
		},
		"client_key: client_auth": func(c *idp.Config) {
			c.ClientAuth, c.ClientSecret = idp.AuthBasic, secret.New("s")
		},
		"client_secret: a client_key": func(c *idp.Config) { c.ClientSecret = secret.New("s") },
		"client_key_id: set, but no": func(c *idp.Config) {
			c.ClientKey, c.ClientKeyID = secret.Value{}, "k"
		},
		"client_key: client_auth priva": func(c *idp.Config) {
			c.ClientKey, c.ClientAuth = secret.Value{}, idp.AuthPrivateKey
		},
	} {
		c := keyed(a, string(good), "")
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), says) ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("want %q: %v", says, err)
		}
	}
	c := keyed(a, string(good), "")
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
