package seal

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
)

// A blob at rest is: version (1 byte) | key id (8) | salt (32) | ciphertext and tag.
const (
	blobVersion = 1
	saltSize    = 32
	headerSize  = 1 + keyIDSize + saltSize
	derivedInfo = "renewd at rest v1"
)

// Seal encrypts plaintext with the newest store key and binds it to associated. Errors:
// ErrNoStoreKeys.
func (k *Keyring) Seal(plaintext, associated []byte) ([]byte, error) {
	if len(k.store) == 0 {
		return nil, fmt.Errorf("seal: %w", ErrNoStoreKeys)
	}
	key := k.store[len(k.store)-1]
	blob := make([]byte, headerSize, headerSize+len(plaintext)+16)
	blob[0] = blobVersion
	copy(blob[1:], key.id)
	salt := blob[1+keyIDSize:]
	if _, err := rand.Read(salt); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	gcm, nonce, err := derive(key.master, salt)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return gcm.Seal(blob, nonce, plaintext, bind(blob[:headerSize], associated)), nil
}

// Open is the inverse of Seal, with any key of the keyring. Errors: ErrUnknownKey, ErrSealed.
func (k *Keyring) Open(blob, associated []byte) ([]byte, error) {
	if len(blob) < headerSize+16 || blob[0] != blobVersion {
		return nil, fmt.Errorf("open: %w: no blob of ours", ErrSealed)
	}
	id := string(blob[1 : 1+keyIDSize])
	for _, key := range k.store {
		if key.id != id {
			continue
		}
		gcm, nonce, err := derive(key.master, blob[1+keyIDSize:headerSize])
		if err != nil {
			return nil, fmt.Errorf("open: %w", err)
		}
		plain, err := gcm.Open(nil, nonce, blob[headerSize:], bind(blob[:headerSize], associated))
		if err != nil {
			return nil, fmt.Errorf("open: %w: changed, or sealed for something else", ErrSealed)
		}
		return plain, nil
	}
	return nil, fmt.Errorf("open: %w", ErrUnknownKey)
}

// NamesKey is a key to hash user ids with, so that logs can tell users apart without naming users.
// It comes from the oldest store key. So NamesKey stays the same when keys are added and promoted,
// and is the same for every process with this keyring. Without store keys it is nil.
func (k *Keyring) NamesKey() []byte {
	if len(k.store) == 0 {
		return nil
	}
	oldest := slices.MinFunc(k.store, func(a, b storeKey) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id))
	})
	key, err := hkdf.Key(sha256.New, oldest.master, nil, "renewd names v1", sha256.Size)
	if err != nil {
		panic("seal: derive the key of names: " + err.Error()) // a size out of range: cannot happen
	}
	return key
}

// derive makes the key and the nonce of one blob. Both come from a fresh salt, so no key and nonce
// are used twice. The limit on random nonces under one key (2^32 messages) does not apply.
func derive(master, salt []byte) (cipher.AEAD, []byte, error) {
	out, err := hkdf.Key(sha256.New, master, salt, derivedInfo, 32+12)
	if err != nil {
		return nil, nil, err
	}
	block, err := aes.NewCipher(out[:32])
	if err != nil {
		return nil, nil, err
	}
	gcm, err := cipher.NewGCM(block)
	return gcm, out[32:], err
}

// bind puts the header under the tag too.
func bind(header, associated []byte) []byte {
	return append(append(make([]byte, 0, len(header)+len(associated)), header...), associated...)
}

// StoreKeyOf returns the id of the store key that a blob was sealed with, as KeyInfo has the id,
// from the first 9 bytes or more of the blob. The id is empty for anything Seal did not write.
// Nothing proves the id before the blob is opened.
func StoreKeyOf(blob []byte) (id string) {
	if len(blob) < 1+keyIDSize || blob[0] != blobVersion {
		return ""
	}
	return storeKeyName(string(blob[1 : 1+keyIDSize]))
}
