package grant

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"sync/atomic"
)

const redacted = "[redacted]"

// Secret is a token, key or password that cannot be printed: every formatter, logger and encoder
// sees [redacted]. It hides its text behind a pointer because fmt walks into unexported string
// fields, also with %#v. The zero value is "no secret".
type Secret struct{ text *text }

type text struct {
	plain       string
	fingerprint atomic.Pointer[string] // once it was asked for
}

// NewSecret wraps s; the empty string gives the zero Secret.
func NewSecret(s string) Secret {
	if s == "" {
		return Secret{}
	}
	return Secret{&text{plain: s}}
}

// Reveal returns the text. Every use of a plain token in the code is a call of this method.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return s.text.plain
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// Equal reports whether both hold the same text.
func (s Secret) Equal(o Secret) bool { return s.Reveal() == o.Reveal() }

// Fingerprint is a short digest that tells tokens apart without revealing them: 128 bits of
// SHA-256, base64url. Tokens are random, so it cannot be turned back by guessing. Empty for the
// zero Secret.
func (s Secret) Fingerprint() string {
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

func (s Secret) String() string               { return redacted }
func (s Secret) GoString() string             { return redacted }
func (s Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
