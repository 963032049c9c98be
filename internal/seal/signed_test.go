package seal_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/seal"
)

type root struct {
	private []byte
	public  string
}

func newRoot(t *testing.T) root {
	t.Helper()
	private, public, err := seal.NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	return root{private, public}
}

func (r root) sign(t *testing.T, jwks []byte, life time.Duration) []byte {
	t.Helper()
	signed, err := seal.SignKeys(r.private, jwks, time.Now(), life)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(signed)
}

// A set is believed as long as its root says, if it is the root that was asked for.
func TestSignedKeys(t *testing.T) {
	ring, err := seal.NewKeyring(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ours, other := newRoot(t), newRoot(t)
	good := ours.sign(t, ring.JWKS(), time.Hour)
	for name, tt := range map[string]struct {
		signed []byte
		after  time.Duration
		roots  []string
		says   string // empty: it is believed
	}{
		"as signed":     {good, 0, []string{ours.public}, ""},
		"one of two":    {good, 0, []string{other.public, ours.public}, ""},
		"a line's end":  {append(good[:len(good):len(good)], '\n'), 0, []string{ours.public}, ""},
		"whatever root": {good, 0, nil, ""},
		"another root":  {good, 0, []string{other.public}, "another root"},
		"over":          {good, time.Hour, []string{ours.public}, "expired at"},
		"over from birth": {
			ours.sign(t, ring.JWKS(), -time.Second), 0, []string{ours.public}, "expired at",
		},
		"not signed": {ring.JWKS(), 0, []string{ours.public}, "no signed key set"},
		"empty":      {nil, 0, []string{ours.public}, "no signed key set"},
		"too long":   {make([]byte, 65<<10), 0, []string{ours.public}, "too long"},
		"other keys": {
			withPayload(t, good, other.sign(t, ring.JWKS(), 48*time.Hour)),
			0,
			[]string{ours.public},
			"signature",
		},
		"no algorithm": {
			withHeader(t, good, `{"alg":"none","typ":"jwk-set+jwt"}`),
			0,
			[]string{ours.public},
			"no signed key set",
		},
		"named by itself": {
			withHeader(t, good, `{"alg":"EdDSA","typ":"jwk-set+jwt","kid":"`+other.public+`"}`), 0,
			nil, "signature",
		},
		"another type": {
			withHeader(t, good, `{"alg":"EdDSA","typ":"JWT","kid":"`+ours.public+`"}`),
			0,
			[]string{ours.public},
			"something else",
		},
	} {
		got, err := seal.OpenSigned(tt.signed, time.Now().Add(tt.after), tt.roots...)
		if tt.says == "" {
			long := time.Until(got.Until) > 59*time.Minute
			if err != nil || !ring.Published(got.JWKS) || got.Root != ours.public || !long {
				t.Errorf("%s: %+v, %v", name, got, err)
			}
			continue
		}
		if !errors.Is(err, seal.ErrRoot) || !strings.Contains(err.Error(), tt.says) ||
			got.JWKS != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// parts are the header, payload and signature of a compact JWS.
func parts(t *testing.T, signed []byte) []string {
	t.Helper()
	p := strings.Split(string(signed), ".")
	if len(p) != 3 {
		t.Fatalf("%s has %d parts", signed, len(p))
	}
	return p
}

func withPayload(t *testing.T, signed, from []byte) []byte {
	t.Helper()
	p := parts(t, signed)
	p[1] = parts(t, from)[1]
	return []byte(strings.Join(p, "."))
}

func withHeader(t *testing.T, signed []byte, header string) []byte {
	t.Helper()
	p := parts(t, signed)
	p[0] = base64.RawURLEncoding.EncodeToString([]byte(header))
	return []byte(strings.Join(p, "."))
}

// Only a public key set is signed, and only with a private root.
func TestSignKeysRefuses(t *testing.T) {
	ring, err := seal.NewKeyring(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	login := jose.JSONWebKey{Key: private, KeyID: "k", Use: "enc"}
	var public jose.JSONWebKeySet
	if err := json.Unmarshal(ring.JWKS(), &public); err != nil {
		t.Fatal(err)
	}
	mixed := jose.JSONWebKeySet{Keys: append(public.Keys, login)}
	r := newRoot(t)
	for name, tt := range map[string]struct{ root, jwks []byte }{
		"no root": {[]byte("{}"), ring.JWKS()},
		"a public root": {
			[]byte(`{"kty":"OKP","crv":"Ed25519","x":"` + r.public + `"}`), ring.JWKS(),
		},
		"a login key":     {encode(login), ring.JWKS()},
		"no set":          {r.private, []byte("x")},
		"an empty set":    {r.private, []byte(`{"keys":[]}`)},
		"the private key": {r.private, encode(mixed)},
	} {
		if _, err := seal.SignKeys(tt.root, tt.jwks, time.Now(), time.Hour); err == nil {
			t.Errorf("%s: signed", name)
		} else if strings.Contains(err.Error(), string(tt.root)) && len(tt.root) > 2 {
			t.Errorf("%s: the error shows the root: %v", name, err)
		}
	}
}

func TestPublicRoots(t *testing.T) {
	r := newRoot(t)
	for text, ok := range map[string]bool{
		r.public:              true,
		"":                    false,
		r.public[1:]:          false,
		"https://example.com": false,
	} {
		if err := seal.CheckRoot(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}
