package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/seal"
)

func asker(t testing.TB) (seal.Asker, []byte) {
	t.Helper()
	a, err := seal.NewAsker()
	if err != nil {
		t.Fatal(err)
	}
	key, err := a.JWK()
	if err != nil {
		t.Fatal(err)
	}
	return a, key
}

func TestAnswerOpensForItsAskerAlone(t *testing.T) {
	a, jwk := asker(t)
	key, err := seal.ParseAnswerKey(jwk)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := seal.SealAnswer(key, "propelauth", "u17", []byte("canary"))
	if err != nil || strings.Contains(answer, "canary") {
		t.Fatalf("%q, %v", answer, err)
	}
	if plain, err := a.Open("propelauth", "u17", answer); err != nil || string(plain) != "canary" {
		t.Errorf("%q, %v", plain, err)
	}
	other, _ := asker(t)
	for what, open := range map[string]func() ([]byte, error){
		"another asker": func() ([]byte, error) {
			return other.Open("propelauth", "u17", answer)
		},
		"another user":     func() ([]byte, error) { return a.Open("propelauth", "u18", answer) },
		"another provider": func() ([]byte, error) { return a.Open("okta", "u17", answer) },
		"no JWE":           func() ([]byte, error) { return a.Open("propelauth", "u17", "x") },
		"cut": func() ([]byte, error) {
			return a.Open("propelauth", "u17", answer[:len(answer)-2])
		},
		"long": func() ([]byte, error) {
			return a.Open("propelauth", "u17", strings.Repeat("x", seal.MaxJWE+1))
		},
	} {
		if plain, err := open(); !errors.Is(err, seal.ErrSealed) || len(plain) > 0 {
			t.Errorf("%s: %q, %v", what, plain, err)
		}
	}
	if again, _ := seal.SealAnswer(key, "propelauth", "u17", []byte("canary")); again == answer {
		t.Error("two answers are the same")
	}
}

// A key that is not of a kind that is taken is refused with a word that helps, and never a panic.
func TestAnswerKeyRefused(t *testing.T) {
	_, good := asker(t)
	var members map[string]string
	if err := json.Unmarshal(good, &members); err != nil {
		t.Fatal(err)
	}
	change := func(name, value string) string {
		changed := map[string]string{}
		for n, v := range members {
			changed[n] = v
		}
		changed[name] = value
		raw, err := json.Marshal(changed)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	zero := strings.Repeat("A", 43)
	for want, keys := range map[string][]string{
		"missing":         {""},
		"at most 1024":    {change("kid", strings.Repeat("k", 1024))},
		"no JSON Web Key": {"null-", "[]", `"key"`, `{"kty":1}`, "{"},
		"kty EC and crv": {
			"{}", "null", change("kty", "RSA"), change("kty", "oct"), change("kty", "ec"),
			change("crv", "P-384"), change("crv", "secp256k1"),
		},
		"private": {change("d", zero)},
		"use enc": {
			change("use", "sig"), change("alg", "RSA1_5"), change("alg", "none"),
			change("alg", "dir"),
		},
		"32 bytes": {
			change("x", ""), change("y", zero+"AA"), change("x", members["x"]+"="),
			change("x", "+"+zero[1:]),
		},
		"no point": {
			change("x", zero), change("y", members["x"]), change("y", strings.Repeat("_", 42)+"8"),
		},
	} {
		for _, key := range keys {
			_, err := seal.ParseAnswerKey([]byte(key))
			if !errors.Is(err, seal.ErrAnswerKey) || !strings.Contains(err.Error(), want) {
				t.Errorf("%.120s: %v, want %q", key, err, want)
			}
		}
	}
	for _, name := range []string{"use=enc", "alg=ECDH-ES", "kid=1", "ext=true"} {
		member, value, _ := strings.Cut(name, "=")
		if _, err := seal.ParseAnswerKey([]byte(change(member, value))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAskerPrintsNoKey(t *testing.T) {
	a, key := asker(t)
	if text := fmt.Sprintf("%v %+v %#v", a, a, a); text != "[redacted] [redacted] [redacted]" {
		t.Error(text)
	}
	if bytes.Contains(key, []byte(`"d"`)) {
		t.Errorf("%s", key)
	}
}

func FuzzParseAnswerKey(f *testing.F) {
	_, key := asker(f)
	f.Add(key)
	f.Add([]byte(`{"kty":"EC","crv":"P-256","x":"","y":""}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, err := seal.ParseAnswerKey(raw)
		if err != nil {
			if !errors.Is(err, seal.ErrAnswerKey) {
				t.Fatal(err)
			}
			return
		}
		if _, err := seal.SealAnswer(k, "p", "u", []byte("x")); err != nil {
			t.Fatalf("%q is taken, and does not seal: %v", raw, err)
		}
	})
}

func BenchmarkSealAnswer(b *testing.B) {
	_, jwk := asker(b)
	b.ReportAllocs()
	for b.Loop() {
		key, err := seal.ParseAnswerKey(jwk)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := seal.SealAnswer(key, "propelauth", "u17", []byte("token")); err != nil {
			b.Fatal(err)
		}
	}
}
