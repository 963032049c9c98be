package appdb

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"

	"github.com/renewd/renewd/internal/secret"
)

// Crypter encrypts as the encrypted cast of a Laravel app does (Illuminate\Encryption\Encrypter
// with AES-256-CBC or AES-128-CBC, by the length of its key): encryptString, in which the cast
// stores a text.
type Crypter struct {
	key   []byte
	block cipher.Block
}

// NewCrypter reads an APP_KEY: base64: and 32 or 16 bytes. The error shows nothing of the key.
func NewCrypter(appKey secret.Value) (*Crypter, error) {
	text, ok := strings.CutPrefix(appKey.Reveal(), "base64:")
	key, err := base64.StdEncoding.DecodeString(text)
	if !ok || err != nil || len(key) != 32 && len(key) != 16 {
		return nil, errors.New("want base64: and 32 bytes (AES-256-CBC) or 16 (AES-128-CBC) in " +
			"base64, as in the app's .env")
	}
	block, err := aes.NewCipher(key)
	return &Crypter{key, block}, err
}

// payload is a Laravel payload, in the order of its members there.
type payload struct {
	IV    string `json:"iv"`
	Value string `json:"value"`
	MAC   string `json:"mac"`
	Tag   string `json:"tag"`
}

// Encrypt makes a payload of a text.
func (c *Crypter) Encrypt(text string) string {
	iv := make([]byte, aes.BlockSize)
	_, _ = rand.Read(iv) // rand.Read never fails
	pad := aes.BlockSize - len(text)%aes.BlockSize
	padded := append([]byte(text), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(c.block, iv).CryptBlocks(padded, padded)
	p := payload{IV: base64.StdEncoding.EncodeToString(iv),
		Value: base64.StdEncoding.EncodeToString(padded)}
	p.MAC = c.mac(p)
	encoded, err := json.Marshal(p)
	if err != nil {
		panic("appdb: encode a payload: " + err.Error()) // texts alone: cannot happen
	}
	return base64.StdEncoding.EncodeToString(encoded)
}

func (c *Crypter) mac(p payload) string {
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(p.IV + p.Value))
	return hex.EncodeToString(mac.Sum(nil))
}

// Errors of Decrypt. They show nothing of the text or of the key.
var (
	// ErrPlain: the text is no payload of Laravel's. Perhaps the text is not encrypted at all.
	ErrPlain = errors.New("is not as Laravel encrypts: is the column encrypted, with AES-CBC?")
	// ErrKey: the payload was encrypted with another key, or was changed.
	ErrKey = errors.New("the app_key does not open it")
)

// Decrypt is the inverse of Encrypt. Errors: ErrPlain, ErrKey.
func (c *Crypter) Decrypt(text string) (string, error) {
	var p payload
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || json.Unmarshal(raw, &p) != nil {
		return "", ErrPlain
	}
	iv, err := base64.StdEncoding.DecodeString(p.IV)
	value, other := base64.StdEncoding.DecodeString(p.Value)
	if err != nil || other != nil || len(iv) != aes.BlockSize || len(value) == 0 ||
		len(value)%aes.BlockSize != 0 {
		return "", ErrPlain
	}
	if !hmac.Equal([]byte(c.mac(p)), []byte(p.MAC)) {
		return "", ErrKey
	}
	cipher.NewCBCDecrypter(c.block, iv).CryptBlocks(value, value)
	pad := int(value[len(value)-1])
	if pad == 0 || pad > aes.BlockSize {
		return "", ErrKey
	}
	return string(value[:len(value)-pad]), nil
}

// LooksEncrypted reports whether a text is a payload of Laravel's, by whatever key.
func LooksEncrypted(text string) bool {
	var p payload
	raw, err := base64.StdEncoding.DecodeString(text)
	return err == nil && json.Unmarshal(raw, &p) == nil && p.IV != "" && p.Value != ""
}
