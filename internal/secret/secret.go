// Package secret holds the one type that cannot be printed: a token, a key or a password (Value).
//
// Every formatter, logger and encoder sees [redacted]. The package imports no other package of
// renewd, so code that only carries a secret needs nothing else of renewd.
//
// A Value is immutable, and safe for concurrent use.
package secret

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"sync/atomic"
)

const redacted = "[redacted]"

// Value is a token, key or password that cannot be printed: every formatter, logger and encoder
// sees [redacted]. It hides its text behind a pointer because fmt walks into unexported string
// fields, also with %#v. The zero value is "no secret".
type Value struct{ text *text }

type text struct {
	plain       string
	fingerprint atomic.Pointer[string] // once asked for
}

// New wraps s; the empty string gives the zero Value.
func New(s string) Value {
	if s == "" {
		return Value{}
	}
	return Value{&text{plain: s}}
}

// Reveal returns the text. Every use of a plain token in the code is a call of this method.
func (s Value) Reveal() string {
	if s.text == nil {
		return ""
	}
	return s.text.plain
}

// IsZero reports whether there is no secret.
func (s Value) IsZero() bool { return s.text == nil }

// Equal reports whether both hold the same text.
func (s Value) Equal(o Value) bool { return s.Reveal() == o.Reveal() }

// Fingerprint is a short digest that tells tokens apart without revealing any: 128 bits of SHA-256,
// base64url. Tokens are random, so no guessing turns a fingerprint back. Empty for the zero Value.
func (s Value) Fingerprint() string {
	if s.text == nil {
		return ""
	}
	if known := s.text.fingerprint.Load(); known != nil {
		return *known
	}
	sum := sha256.Sum256([]byte("renewd token\x00" + s.text.plain))
	fingerprint := base64.RawURLEncoding.EncodeToString(sum[:16])
	s.text.fingerprint.Store(&fingerprint)
	return fingerprint
}

func (s Value) String() string               { return redacted }
func (s Value) GoString() string             { return redacted }
func (s Value) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (s Value) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Value) MarshalText() ([]byte, error) { return []byte(redacted), nil }
