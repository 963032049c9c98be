package idp_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/schema"
)

// issuer is a provider without a userinfo endpoint, as Apple is one: who the user is stands in the
// ID token alone.
type issuer struct {
	*httptest.Server
	key      *ecdsa.PrivateKey
	keysDown atomic.Bool
	date     atomic.Pointer[time.Time] // its clock
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if at := i.date.Load(); at != nil {
			w.Header().Set("Date", at.UTC().Format(http.TimeFormat))
		}
		var answer any
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			answer = map[string]any{
				"issuer":                                i.URL,
				"token_endpoint":                        i.URL + "/token",
				"jwks_uri":                              i.URL + "/keys",
				"id_token_signing_alg_values_supported": []string{"ES256"},
			}
		case "/token":
			answer = map[string]any{"access_token": "new", "expires_in": 60}
		case "/keys":
			if i.keysDown.Load() {
				http.Error(w, "canary", http.StatusBadGateway)
				return
			}
			answer = jose.JSONWebKeySet{
				Keys: []jose.JSONWebKey{
					{Key: key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"},
				},
			}
		default:
			t.Errorf("asked for %s", r.URL.Path)
		}
		_ = json.NewEncoder(w).Encode(answer)
	}))
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) client(t *testing.T, change func(*idp.Config)) *idp.Provider {
	t.Helper()
	return open(t, i.URL, func(c *idp.Config) {
		c.Preset, c.NoUserInfo = "oidc", true
		if change != nil {
			change(c)
		}
	})
}

func atHash(access string) string {
	sum := sha256.Sum256([]byte(access))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// token is an ID token for access, with some claims changed; nil takes one out.
func (i *issuer) token(t *testing.T, access string, change map[string]any) string {
	t.Helper()
	claims := map[string]any{
		"iss":     i.URL,
		"sub":     "u",
		"aud":     "client",
		"iat":     time.Now().Unix(),
		"exp":     time.Now().Add(time.Minute).Unix(),
		"at_hash": atHash(access),
		"email":   "u@x",
		"groups":  []string{"g"},
	}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return sign(t, i.key, claims)
}

func sign(t *testing.T, key *ecdsa.PrivateKey, claims any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{
		Algorithm: jose.ES256,
		Key:       jose.JSONWebKey{Key: key, KeyID: "k"},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(claims)
	signed, err := signer.Sign(text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func identify(t *testing.T, p *idp.Provider, id, access string) (schema.Profile, error) {
	t.Helper()
	got, err := p.Identify(t.Context(), secret.New(id), secret.New(access), false, "u")
	if err != nil && strings.Contains(fmt.Sprintf("%v %#v", err, err), "canary") {
		t.Errorf("the error quotes what was sent: %v", err)
	}
	return got, err
}

func failed(class grant.Class) func(schema.Profile, error) bool {
	return func(_ schema.Profile, err error) bool {
		f, ok := errors.AsType[*grant.Fault](err)
		return ok && f.Class == class && f.Op == "id_token"
	}
}

func TestAnIDTokenIsAProfile(t *testing.T) {
	i := newIssuer(t)
	p, err := identify(t, i.client(t, nil),
		i.token(t, "a", map[string]any{"aud": []string{"other", "client"}}), "a")
	if err != nil || p.ID != "u" || p.Email != "u@x" || !slices.Equal(p.Groups, []string{"g"}) ||
		!strings.Contains(string(p.Raw), `"at_hash"`) {
		t.Errorf("%+v, %v", p, err)
	}
}

// An ID token names the user of the access token that it came with (OpenID Connect Core section
// 3.1.3.8), and of no other. Otherwise a sender could seal another user's old ID token beside
// tokens of a different user.
func TestAnIDTokenThatProvesNothing(t *testing.T) {
	i := newIssuer(t)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(_ schema.Profile, err error) bool {
		return errors.Is(err,
			grant.ErrAccessRefused)
	}
	for name, tt := range map[string]struct {
		id    string
		check func(schema.Profile, error) bool
	}{
		"none":                    {"", refused},
		"of another access token": {i.token(t, "other", nil), refused},
		"of none":                 {i.token(t, "a", map[string]any{"at_hash": nil}), refused},
		"expired": {
			i.token(t, "a", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), refused,
		},
		"of somebody else": {
			i.token(t, "a", map[string]any{"sub": "v", "email": "canary"}),
			func(_ schema.Profile, err error) bool {
				return errors.Is(err, grant.ErrSubjectMismatch)
			},
		},
		"of nobody": {
			i.token(t, "a", map[string]any{"sub": nil}), failed(grant.Unknown),
		},
		"another client's": {
			i.token(t, "a", map[string]any{"aud": "canary"}), failed(grant.Unknown),
		},
		"another issuer's": {
			i.token(t, "a", map[string]any{"iss": "https://canary"}), failed(grant.Unknown),
		},
		"signed by a stranger": {
			sign(t, stranger, map[string]any{
				"iss":     i.URL,
				"sub":     "u",
				"aud":     "client",
				"exp":     time.Now().Add(time.Minute).Unix(),
				"at_hash": atHash("a"),
			}), failed(grant.Unknown),
		},
		"unsigned": {
			"eyJhbGciOiJub25lIn0." + strings.Split(i.token(t, "a", nil), ".")[1] + ".",
			failed(grant.Unknown),
		},
		"no token": {"canary", refused},
		"old, of keys given up": {
			sign(t, stranger, map[string]any{
				"iss":     i.URL,
				"sub":     "u",
				"aud":     "client",
				"exp":     1,
				"at_hash": atHash("older"),
			}), refused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := identify(t, i.client(t, nil), tt.id, "a"); !tt.check(p, err) {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

// Of one answer of the provider's, an ID token without a hash is of the access token beside it; one
// that has the hash of another is not.
func TestAnIDTokenThatWasAnsweredNeedsNoHash(t *testing.T) {
	i := newIssuer(t)
	client := i.client(t, nil)
	for name, tt := range map[string]struct {
		hash any
		want error
	}{
		"none":      {nil, nil},
		"its own":   {atHash("a"), nil},
		"another's": {atHash("b"), grant.ErrAccessRefused},
		"no text":   {7, grant.ErrAccessRefused},
	} {
		id := secret.New(i.token(t, "a", map[string]any{"at_hash": tt.hash}))
		if p, err := client.Identify(
			t.Context(), id, secret.New("a"), true, "u",
		); !errors.Is(err, tt.want) || err == nil && p.ID != "u" {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

// A provider that does not hand out its keys says nothing against a user or a login.
func TestKeysThatAreAwayAreNoVerdict(t *testing.T) {
	i := newIssuer(t)
	client := i.client(t, nil)
	i.keysDown.Store(true)
	if _, err := identify(
		t, client, i.token(t, "a", nil), "a",
	); !failed(grant.Unsent)(schema.Profile{}, err) {
		t.Error(err)
	}
	i.keysDown.Store(false)
	// go-oidc may give a caller that comes at once the failure of the fetch before.
	var err error
	for range 100 {
		if _, err = identify(t, client, i.token(t, "a", nil), "a"); err == nil {
			return
		}
	}
	t.Error(err)
}

// An ID token's times are the provider's. Its clock is known from its last answer.
func TestAnIDTokenExpiresByTheProvidersClock(t *testing.T) {
	i := newIssuer(t)
	client := i.client(t, nil)
	behind := time.Now().Add(-3 * time.Hour)
	i.date.Store(&behind)
	if _, err := client.Refresh(t.Context(), secret.New(canary)); err != nil {
		t.Fatal(err)
	}
	if _, err := identify(
		t, client, i.token(t, "a", map[string]any{"exp": behind.Add(time.Minute).Unix()}), "a",
	); err != nil {
		t.Error(err)
	}
	if _, err := identify(
		t, client, i.token(t, "a", map[string]any{"exp": behind.Add(-time.Hour).Unix()}), "a",
	); !errors.Is(err, grant.ErrAccessRefused) {
		t.Error(err)
	}
}

func TestNoUserInfoNamesTheField(t *testing.T) {
	for _, change := range []func(*idp.Config){
		func(c *idp.Config) { c.UserInfoURL = "https://x/me" },
		func(c *idp.Config) { c.BaseURL, c.TokenURL = "", "https://x/token" },
	} {
		c := idp.Config{
			ID:         "p",
			Preset:     "oidc",
			BaseURL:    "https://x",
			ClientID:   "x",
			NoUserInfo: true,
		}
		change(&c)
		if err := c.Validate(); err == nil ||
			!strings.HasPrefix(err.Error(), "userinfo:") &&
				!strings.HasPrefix(err.Error(), "auth_url:") {
			t.Error(err)
		}
	}
}
