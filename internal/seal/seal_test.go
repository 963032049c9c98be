package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/secret"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ring(t testing.TB) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring(noon)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAtRest(t *testing.T) {
	k := ring(t)
	plain, bound := []byte("canary"), []byte("propelauth/u17/5")
	blob, err := k.Seal(plain, bound)
	if err != nil || bytes.Contains(blob, plain) {
		t.Fatalf("sealed %q, %v", blob, err)
	}
	if got, err := k.Open(blob, bound); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("opened %q, %v", got, err)
	}
	if _, err := k.Open(blob, []byte("propelauth/u18/5")); !errors.Is(err, seal.ErrSealed) {
		t.Errorf("opened for somebody else: %v", err)
	}
	for i := range blob {
		bad := bytes.Clone(blob)
		bad[i] ^= 1
		if got, err := k.Open(bad, bound); err == nil {
			t.Fatalf("byte %d changed, and it opened: %q", i, got)
		} else if !errors.Is(err, seal.ErrSealed) && !errors.Is(err, seal.ErrUnknownKey) {
			t.Fatalf("byte %d: %v", i, err)
		}
	}
	if again, _ := k.Seal(plain, bound); bytes.Equal(again[9:41], blob[9:41]) {
		t.Error("two blobs share a salt, and so a key and nonce")
	}
	if _, err := ring(t).Open(blob, bound); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("another keyring: %v", err)
	}
}

func TestRotationOpensTheOld(t *testing.T) {
	old := ring(t)
	blob, err := old.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe := login(t, old, "p", "u")
	next, err := old.Rotate(noon.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := next.Open(blob, nil); err != nil {
		t.Error(err)
	}
	if _, err := next.OpenLogin(jwe); err != nil {
		t.Error(err)
	}
	if next, err = next.Promote(); err != nil {
		t.Fatal(err)
	}
	if len(next.Keys()) != 4 || len(old.Keys()) != 2 || bytes.Equal(next.JWKS(), old.JWKS()) {
		t.Error("rotation did not add keys, or changed the old ring")
	}
	fresh, _ := next.Seal([]byte("x"), nil)
	if _, err := old.Open(fresh, nil); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("the new key does not seal: %v", err)
	}
}

// A fresh key opens only, so that workers can get it one after the other. What the keyring seals
// meanwhile can be opened by workers without the fresh key too.
func TestAFreshKeySealsOnceItIsPromoted(t *testing.T) {
	old := ring(t)
	if _, err := old.Promote(); !errors.Is(err, seal.ErrNothingToPromote) {
		t.Errorf("promoted without a fresh key: %v", err)
	}
	added, err := old.Rotate(noon.Add(-time.Hour)) // by a clock that was set back
	if err != nil {
		t.Fatal(err)
	}
	if _, err := added.Rotate(noon.Add(time.Hour)); !errors.Is(err, seal.ErrNotPromoted) {
		t.Errorf("rotated twice: %v", err)
	}
	raw, err := added.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if added, err = seal.ParseKeyring(raw); err != nil {
		t.Fatal(err)
	}
	blob, err := added.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Open(blob, nil); err != nil {
		t.Errorf("a fresh key seals before it is promoted: %v", err)
	}
	if !bytes.Equal(added.JWKS(), old.JWKS()) {
		t.Error("logins are sealed to a fresh key before it is promoted")
	}
	promoted, err := added.Promote()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := promoted.Open(blob, nil); err != nil {
		t.Errorf("what the old key sealed: %v", err)
	}
	if blob, err = promoted.Seal([]byte("x"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := added.Open(blob, nil); err != nil {
		t.Errorf("a worker that was not told of the promotion yet: %v", err)
	}
	if _, err := old.Open(blob, nil); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("the promoted key does not seal: %v", err)
	}
	states := func(k *seal.Keyring) (s string) {
		for _, key := range k.Keys() {
			s += fmt.Sprintf("%s:%t,%t ", key.Use, key.Current, key.Next)
		}
		return s
	}
	got := states(added)
	if got != "login:true,false login:false,true store:true,false store:false,true " {
		t.Errorf("before: %s", got)
	}
	got = states(promoted)
	if got != "login:false,false login:true,false store:false,false store:true,false " {
		t.Errorf("after: %s", got)
	}
}

// What is sealed says with which key, and a key that is retired is gone, unless it seals.
func TestAKeyCanBeRetired(t *testing.T) {
	old := ring(t)
	added, err := old.Rotate(noon.Add(time.Hour))
	if err != nil || len(added.Old()) != 0 {
		t.Fatalf("old keys %q, %v", added.Old(), err)
	}
	k, err := added.Promote()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := old.Seal([]byte("canary"), nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := k.Seal([]byte("canary"), nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe, err := seal.SealLogin(old.JWKS(), "p", "u", noon, seal.Tokens{Access: secret.New("a")})
	if err != nil {
		t.Fatal(err)
	}
	keys := k.Keys() // login, login, store, store; the older first
	if got := k.Old(); len(got) != 1 || got[0] != keys[2].ID {
		t.Errorf("old keys %q, want %s", got, keys[2].ID)
	}
	if id := seal.StoreKeyOf(blob[:9]); id != keys[2].ID {
		t.Errorf("sealed with %q, want %q", id, keys[2].ID)
	}
	if id := seal.StoreKeyOf(fresh); id != keys[3].ID {
		t.Errorf("sealed with %q, want %q", id, keys[3].ID)
	}
	if id := seal.LoginKeyOf(jwe); id != keys[0].ID {
		t.Errorf("sealed to %q, want %q", id, keys[0].ID)
	}
	for _, no := range [][]byte{nil, blob[:8], append([]byte{9}, blob...)} {
		if id := seal.StoreKeyOf(no); id != "" {
			t.Errorf("%q for what no key sealed", id)
		}
	}
	if id := seal.LoginKeyOf("a.b.c.d.e"); id != "" {
		t.Errorf("%q for what no key sealed", id)
	}
	for _, id := range []string{keys[1].ID, keys[3].ID} {
		if _, err := k.Retire(keys[0].ID, id); !errors.Is(err, seal.ErrCurrent) {
			t.Errorf("retired %s, which seals: %v", id, err)
		}
	}
	if _, err := k.Retire("x"); !errors.Is(err, seal.ErrNoKey) {
		t.Errorf("retired what is not there: %v", err)
	}
	rest, err := k.Retire(keys[0].ID, keys[2].ID)
	if err != nil || len(rest.Keys()) != 2 || len(k.Keys()) != 4 ||
		!bytes.Equal(rest.JWKS(), k.JWKS()) {
		t.Fatalf("left %v of %v, %v", rest.Keys(), k.Keys(), err)
	}
	if _, err := rest.Open(blob, nil); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("a retired key opens: %v", err)
	}
	if _, err := rest.OpenLogin(jwe); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("a retired key opens a login: %v", err)
	}
	if _, err := rest.Open(fresh, nil); err != nil {
		t.Error(err)
	}
	raw, err := rest.Marshal()
	if err == nil {
		_, err = seal.ParseKeyring(raw)
	}
	if err != nil {
		t.Error(err)
	}
}

// An id is given to commands, which must not take it for a flag: one of 64 would begin with a dash.
func TestKeyIDsAreNoFlags(t *testing.T) {
	k := ring(t)
	for i := range 300 {
		for _, key := range k.Keys() {
			if strings.HasPrefix(key.ID, "-") {
				t.Fatalf("key %s after %d rotations", key.ID, i)
			}
		}
		next, err := k.Rotate(noon)
		if err == nil {
			k, err = next.Promote()
		}
		if err == nil {
			k, err = k.Retire(k.Keys()[0].ID, k.Keys()[2].ID)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeyringRoundTrip(t *testing.T) {
	k := ring(t)
	raw, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := seal.ParseKeyring(raw)
	if err != nil {
		t.Fatal(err)
	}
	if second, _ := again.Marshal(); !bytes.Equal(raw, second) {
		t.Error("parse and write gave other bytes")
	}
	for _, bad := range []string{
		"", "{}", "[]", string(raw) + "{}",
		strings.Replace(string(raw), `"version": 1`, `"version": 2`, 1),
		strings.Replace(string(raw), `"d":`, `"e":`, 1),
		strings.Replace(string(raw), `"master": "`, `"master": "AA`, 1),
	} {
		if _, err := seal.ParseKeyring([]byte(bad)); !errors.Is(err, seal.ErrKeyring) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	for _, use := range []string{"login", "store"} {
		var twins map[string]any
		if err := json.Unmarshal(raw, &twins); err != nil {
			t.Fatal(err)
		}
		keys := twins[use].([]any)
		twins[use] = append(keys, keys[0])
		bad, err := json.Marshal(twins)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seal.ParseKeyring(bad); !errors.Is(err, seal.ErrKeyring) ||
			!strings.Contains(err.Error(), "two keys have the id") {
			t.Errorf("two %s keys of one id: %v", use, err)
		}
	}
}

// The keys of one use open and seal what they are for, and nothing else. They are written, rotated
// and promoted without the others, and both together are the keyring that they came from.
func TestTheUsesOfAKeyringCanBeApart(t *testing.T) {
	whole := ring(t)
	blob, err := whole.Seal([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	jwe := login(t, whole, "p", "u")
	parts := map[string]*seal.Keyring{}
	for _, use := range []string{seal.UseLogin, seal.UseStore} {
		raw, err := whole.Only(use).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if parts[use], err = seal.ParseKeyring(raw); err != nil {
			t.Fatal(err)
		}
		if uses := parts[use].Uses(); len(uses) != 1 || uses[0] != use {
			t.Errorf("of the %s keys: %q", use, uses)
		}
	}
	logins, store := parts[seal.UseLogin], parts[seal.UseStore]
	if _, err := logins.OpenLogin(jwe); err != nil {
		t.Error(err)
	}
	if _, err := logins.Open(blob, nil); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("login keys open a record: %v", err)
	}
	if _, err := logins.Seal([]byte("x"), nil); !errors.Is(err, seal.ErrNoStoreKeys) {
		t.Errorf("login keys seal a record: %v", err)
	}
	if key := logins.NamesKey(); key != nil {
		t.Error("login keys hash user ids")
	}
	if _, err := store.Open(blob, nil); err != nil {
		t.Error(err)
	}
	if _, err := store.OpenLogin(jwe); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("store keys open a login: %v", err)
	}
	if jwks := store.JWKS(); jwks != nil || store.Published(whole.JWKS()) {
		t.Errorf("store keys publish %s", jwks)
	}
	same := func(a, b *seal.Keyring) bool {
		one, err := a.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		other, err := b.Marshal()
		return err == nil && bytes.Equal(one, other)
	}
	if !same(logins.With(store), whole) || !same(store.With(logins), whole) {
		t.Error("the parts together are another keyring")
	}
	rotated, err := whole.Rotate(noon.Add(time.Hour), seal.UseStore)
	if err != nil || !same(rotated.Only(seal.UseLogin), logins) || len(rotated.Keys()) != 3 {
		t.Fatalf("store keys rotated: %v, %v", rotated.Keys(), err)
	}
	if _, err := rotated.Promote(seal.UseLogin); !errors.Is(err, seal.ErrNothingToPromote) {
		t.Errorf("promoted login keys, of which none is fresh: %v", err)
	}
	both, err := rotated.Rotate(noon.Add(2*time.Hour), seal.UseLogin)
	if err != nil {
		t.Fatal(err)
	}
	promoted, err := both.Promote(seal.UseStore)
	if err != nil || !bytes.Equal(promoted.JWKS(), whole.JWKS()) || len(promoted.Old()) != 1 {
		t.Errorf("promoted %v, %v", promoted.Keys(), err)
	}
	if next, err := store.Rotate(noon.Add(time.Hour)); err != nil || len(next.Keys()) != 2 ||
		next.JWKS() != nil {
		t.Errorf("rotated alone: %v", err)
	}
	if only, err := seal.NewKeyring(noon, seal.UseLogin); err != nil || len(only.Keys()) != 1 ||
		only.JWKS() == nil {
		t.Errorf("made alone: %v", err)
	}
}

func login(t testing.TB, k *seal.Keyring, provider, user string) string {
	t.Helper()
	jwe, err := seal.SealLogin(k.JWKS(), provider, user, noon, seal.Tokens{
		Access:    secret.New("canary-a"),
		Refresh:   secret.New("canary-r"),
		ID:        secret.New("canary-i"),
		Scope:     "openid",
		ExpiresIn: time.Hour,
	})
	if err != nil {
		t.Fatal(err)
	}
	return jwe
}

func TestLoginRoundTrip(t *testing.T) {
	k := ring(t)
	l, err := k.OpenLogin(login(t, k, "propelauth", "auth0|ü"))
	if err != nil {
		t.Fatal(err)
	}
	if l.Provider != "propelauth" || l.User != "auth0|ü" || !l.SealedAt.Equal(noon) ||
		l.Access.Reveal() != "canary-a" || l.Refresh.Reveal() != "canary-r" ||
		l.ID.Reveal() != "canary-i" || l.Scope != "openid" || l.ExpiresIn != time.Hour {
		t.Errorf("opened %+v", l)
	}
	js, _ := json.Marshal(l)
	raw, _ := k.Marshal()
	text := fmt.Sprintf("%v %+v %#v %s %v %#v %+v", l, l, l, js, k, k, k)
	if strings.Contains(text, "canary") || strings.Contains(text, string(raw[60:100])) {
		t.Errorf("a secret was printed: %s", text)
	}
}

// A login is refused if anything about it was changed, if it is of another kind, or lacks what it
// must have.
func TestLoginRefused(t *testing.T) {
	k := ring(t)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(k.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	key := set.Keys[0]
	make := func(
		alg jose.KeyAlgorithm, enc jose.ContentEncryption, o *jose.EncrypterOptions, plain string,
	) string {
		e, err := jose.NewEncrypter(enc,
			jose.Recipient{Algorithm: alg, Key: key.Key, KeyID: key.KeyID}, o)
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := e.Encrypt([]byte(plain))
		if err != nil {
			t.Fatal(err)
		}
		jwe, err := sealed.CompactSerialize()
		if err != nil {
			t.Fatal(err)
		}
		return jwe
	}
	whom := func() *jose.EncrypterOptions {
		return new(jose.EncrypterOptions).WithHeader("iss", "p").WithHeader("sub", "u").
			WithHeader("iat", noon.Unix())
	}
	good := `{"access_token":"canary"}`
	swapped := strings.Split(login(t, k, "p", "u"), ".")
	swapped[0] = base64.RawURLEncoding.EncodeToString(
		bytes.Replace(decode(t, swapped[0]), []byte(`"sub":"u"`), []byte(`"sub":"v"`), 1),
	)
	for name, jwe := range map[string]string{
		"nothing": "", "no JWE": "a.b.c", "another header": strings.Join(swapped, "."),
		"another enc": make(jose.ECDH_ES, jose.A128GCM, whom(), good),
		"another alg": make(jose.ECDH_ES_A256KW, jose.A256GCM, whom(), good),
		"compressed": make(jose.ECDH_ES, jose.A256GCM,
			&jose.EncrypterOptions{Compression: jose.DEFLATE, ExtraHeaders: whom().ExtraHeaders},
			good),
		"nobody": make(jose.ECDH_ES, jose.A256GCM, nil, good),
		"no time": make(jose.ECDH_ES, jose.A256GCM,
			new(jose.EncrypterOptions).WithHeader("iss", "p").WithHeader("sub", "u"), good),
		"no token": make(jose.ECDH_ES, jose.A256GCM, whom(), `{"refresh_token":"canary"}`),
		"no JSON":  make(jose.ECDH_ES, jose.A256GCM, whom(), `canary`),
		"bad expiry": make(jose.ECDH_ES, jose.A256GCM, whom(),
			`{"access_token":"canary","expires_in":"soon"}`),
		"bad expiry 2": make(jose.ECDH_ES, jose.A256GCM, whom(),
			`{"access_token":"canary","expires_at":"tomorrow"}`),
		"too large": strings.Repeat("x", seal.MaxJWE+1),
	} {
		_, err := k.OpenLogin(jwe)
		if !errors.Is(err, seal.ErrSealed) ||
			strings.Contains(fmt.Sprintf("%#v %v", err, err), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ring(t).OpenLogin(login(t, k, "p", "u")); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("another keyring: %v", err)
	}
	for body, want := range map[string]time.Time{
		`{"access_token":"a","expires_at":1772366400}`:             time.Unix(1772366400, 0),
		`{"access_token":"a","expires_at":"2026-03-01T12:00:00Z"}`: noon,
		`{"access_token":"a","expires_in":null,"expires_at":""}`:   {},
	} {
		l, err := k.OpenLogin(make(jose.ECDH_ES, jose.A256GCM, whom(), body))
		if err != nil || !l.ExpiresAt.Equal(want) {
			t.Errorf("%s: %v, %v", body, l.ExpiresAt, err)
		}
	}
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestSealLoginNeedsAKey(t *testing.T) {
	for _, jwks := range []string{
		"", "{}", `{"keys":[{"kty":"oct","k":"AA","use":"enc","kid":"x"}]}`,
	} {
		_, err := seal.SealLogin([]byte(jwks), "p", "u", noon, seal.Tokens{Access: secret.New("a")})
		if err == nil {
			t.Errorf("sealed to %q", jwks)
		}
	}
	_, err := seal.SealLogin(ring(t).JWKS(), "p", "u", noon,
		seal.Tokens{Access: secret.New(strings.Repeat("a", seal.MaxJWE))})
	if err == nil {
		t.Error("a login that fits into no message was sealed")
	}
}

func FuzzOpenLogin(f *testing.F) {
	k := ring(f)
	f.Add(login(f, k, "p", "u"))
	f.Add("a.b.c.d.e")
	f.Add("")
	f.Fuzz(func(t *testing.T, jwe string) {
		l, err := k.OpenLogin(jwe)
		if err == nil && (l.Provider == "" || l.User == "" || l.Access.Reveal() == "") {
			t.Errorf("opened to %+v", l)
		}
	})
}

func FuzzOpen(f *testing.F) {
	k := ring(f)
	blob, err := k.Seal([]byte("x"), []byte("y"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(blob, []byte("y"))
	f.Add([]byte{1}, []byte{})
	f.Fuzz(func(t *testing.T, b, associated []byte) {
		_, err := k.Open(b, associated)
		if err == nil && !(bytes.Equal(b, blob) && bytes.Equal(associated, []byte("y"))) {
			t.Error("a forged blob opened")
		}
	})
}

func FuzzParseKeyring(f *testing.F) {
	raw, err := ring(f).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := seal.ParseKeyring(b); err == nil {
			if _, err := k.Seal([]byte("x"), nil); err != nil && len(k.JWKS()) == 0 {
				t.Errorf("a keyring that does not seal: %v", err)
			}
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k := ring(b)
	plain := bytes.Repeat([]byte("x"), 1500)
	for b.Loop() {
		if _, err := k.Seal(plain, []byte("propelauth/u17/5")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenLogin(b *testing.B) {
	k := ring(b)
	jwe := login(b, k, "p", "u")
	for b.Loop() {
		if _, err := k.OpenLogin(jwe); err != nil {
			b.Fatal(err)
		}
	}
}

// The key of names is that of the oldest store key: it stays through a rotation, and comes with the
// file.
func TestNamesKeyStays(t *testing.T) {
	ring, err := seal.NewKeyring(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	first := ring.NamesKey()
	rotated, err := ring.Rotate(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	promoted, err := rotated.Promote()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := promoted.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	read, err := seal.ParseKeyring(raw)
	if err != nil {
		t.Fatal(err)
	}
	for what, k := range map[string]*seal.Keyring{
		"rotated":  rotated,
		"promoted": promoted,
		"read":     read,
	} {
		if !bytes.Equal(k.NamesKey(), first) {
			t.Errorf("%s: another key", what)
		}
	}
	if other, err := seal.NewKeyring(time.Now()); err != nil ||
		bytes.Equal(other.NamesKey(), first) || len(first) != 32 {
		t.Errorf("%d bytes, %v", len(first), err)
	}
}
