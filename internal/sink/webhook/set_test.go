package webhook_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/schema"
)

// sealed is a private key as a file holds it.
func sealed(t *testing.T, private any) secret.Value {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := &pem.Block{Type: "PRIVATE KEY", Bytes: der}
	return secret.New(string(pem.EncodeToMemory(block)))
}

func onCurve(t *testing.T, c elliptic.Curve) secret.Value {
	t.Helper()
	private, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sealed(t, private)
}

func withRSA(t *testing.T, bits int) secret.Value {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return sealed(t, private)
}

// asSET is the config of an endpoint that takes Security Event Tokens.
func (e *endpoint) asSET(key secret.Value) webhook.Config {
	c := e.config()
	c.Secrets = nil
	c.SET = &webhook.SET{
		Issuer: "https://renewd.example.com", Audience: "https://app.example.com", Key: key,
		Subjects: map[string]string{"propelauth": "https://auth.example.com"},
	}
	return c
}

// claims are what a SET says.
type claims struct {
	jwt.Claims
	Subject map[string]string    `json:"sub_id"`
	Events  map[string]happening `json:"events"`
}

type happening struct {
	At     int64             `json:"event_timestamp"`
	By     string            `json:"initiating_entity"`
	Reason map[string]string `json:"reason_admin"`
	Claims map[string]any    `json:"claims"`
}

// read verifies a SET with the published keys, by another library's parser, and reads it.
func read(t *testing.T, key secret.Value, body []byte, by jose.SignatureAlgorithm) claims {
	t.Helper()
	text, err := webhook.PublicKeys(key)
	if err != nil || strings.Contains(string(text), `"d"`) {
		t.Fatal("published is a private key, or nothing:", err)
	}
	var published jose.JSONWebKeySet
	if err := json.Unmarshal(text, &published); err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(string(body), []jose.SignatureAlgorithm{by})
	if err != nil {
		t.Fatal(err)
	}
	head := token.Headers[0]
	if typ := head.ExtraHeaders[jose.HeaderType]; typ != "secevent+jwt" {
		t.Errorf("typ is %v", typ)
	}
	keys := published.Key(head.KeyID)
	if len(keys) != 1 {
		t.Fatalf("%d keys are published under %q", len(keys), head.KeyID)
	}
	var c claims
	if err := token.Claims(keys[0], &c); err != nil {
		t.Fatal(err)
	}
	err = c.Validate(jwt.Expected{
		Issuer: "https://renewd.example.com", AnyAudience: jwt.Audience{"https://app.example.com"},
		Time: time.Now(),
	})
	if err != nil {
		t.Error(err)
	}
	return c
}

const (
	revoked = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
	changes = "https://schemas.openid.net/secevent/caep/event-type/token-claims-change"
)

// Sign-outs are told as session-revoked and changed profiles as token-claims-change, verified with
// the published key. The id stays the same over retries.
func TestSecurityEventTokens(t *testing.T) {
	for by, key := range map[jose.SignatureAlgorithm]secret.Value{
		jose.ES256: onCurve(t, elliptic.P256()), jose.RS256: withRSA(t, 2048),
	} {
		at := newEndpoint(t, answering(http.StatusAccepted))
		to := target(t, at.asSET(key))
		out := signedOut
		out.Data = json.RawMessage(`{"version":7,"reason":"user asked"}`)
		synced := signedOut
		synced.Type, synced.Data = schema.UserSynced, json.RawMessage(`{"version":8,
			"changed":["first_name","email","picture","raw","organisations"],
			"profile":{"id":"u","first_name":"Jane","email":"j@a.example","raw":{"x":1},
			"omitted":["organisations"]}}`)
		unchanged := synced
		unchanged.Data = json.RawMessage(`{"changed":[],"profile":{"id":"u"}}`)
		hidden := synced
		hidden.Data = json.RawMessage(`{"changed":["email"]}`)
		failed := synced
		failed.Type = schema.UserRefreshFailed
		for _, e := range []schema.Event{out, out, synced, unchanged, hidden, failed} {
			if err := to.Deliver(t.Context(), e); err != nil {
				t.Fatal(e.Type, err)
			}
		}
		if len(at.bodies) != 3 {
			t.Fatalf("%d tokens came, want two of the sign-out and one of the profile",
				len(at.bodies))
		}
		head := at.heads[0]
		if got := head.Get("Content-Type") + " " + head.Get("Accept") + " " +
			head.Get("Authorization") + head.Get("Webhook-Id"); got !=
			"application/secevent+jwt application/json Bearer its-own" {
			t.Errorf("the headers are %s", got)
		}
		ended, again := read(t, key, at.bodies[0], by), read(t, key, at.bodies[1], by)
		if ended.ID != "o7Xq" || again.ID != ended.ID || ended.Expiry != nil {
			t.Errorf("the id is %q and again %q; expiry %v", ended.ID, again.ID, ended.Expiry)
		}
		if want := map[string]string{"format": "iss_sub", "iss": "https://auth.example.com",
			"sub": "jane@example.com"}; !maps.Equal(ended.Subject, want) {
			t.Errorf("the subject is %v", ended.Subject)
		}
		what := ended.Events[revoked]
		if len(ended.Events) != 1 || what.At != signedOut.Time.Unix() ||
			what.Reason["en"] != "user asked" {
			t.Errorf("the events are %+v", ended.Events)
		}
		got := read(t, key, at.bodies[2], by).Events[changes].Claims
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names,
			[]string{"email", "given_name", "picture"}) || got["given_name"] != "Jane" ||
			got["email"] != "j@a.example" || got["picture"] != nil {
			t.Errorf("the claims are %v", got)
		}
	}
}

// What a receiver refuses is blamed on the token, or on the settings that each has, and nothing
// else that it says is quoted.
func TestRefusedTokens(t *testing.T) {
	key := onCurve(t, elliptic.P256())
	for code, blame := range map[string]sink.Blame{
		"invalid_request": sink.Refused, "invalid_audience": sink.Unreachable,
		"authentication_failed": sink.Unreachable, "s3cret": sink.Unclear,
	} {
		at := newEndpoint(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(`{"err":"` + code + `","description":"jane s3cret"}`))
		})
		err := target(t, at.asSET(key)).Deliver(t.Context(), signedOut)
		got := sink.Unclear
		if f, ok := errors.AsType[*sink.Fault](err); ok {
			got = f.Blame
		}
		if err == nil || got != blame || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v (%s), want %s", code, err, got, blame)
		}
	}
}

// Mistakes in the settings name the setting, and show nothing of the key.
func TestCheckSET(t *testing.T) {
	good := webhook.SET{Issuer: "https://renewd.example.com", Audience: "app",
		Key: onCurve(t, elliptic.P256())}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*webhook.SET){
		"":                            func(*webhook.SET) {},
		"set_issuer: want":            func(s *webhook.SET) { s.Issuer = "renewd" },
		"set_audience: missing":       func(s *webhook.SET) { s.Audience = "" },
		"set_key: want a private":     func(s *webhook.SET) { s.Key = secret.New("s3cret") },
		"set_key: an RSA key needs":   func(s *webhook.SET) { s.Key = withRSA(t, 1024) },
		"set_key: of the curves":      func(s *webhook.SET) { s.Key = onCurve(t, elliptic.P384()) },
		"set_key: want a private key": func(s *webhook.SET) { s.Key = sealed(t, edwards) },
	} {
		s := good
		change(&s)
		err := webhook.Config{URL: "https://example.com/events", SET: &s}.Check()
		if want == "" && err != nil || want != "" && (err == nil ||
			!strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "s3cret")) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
