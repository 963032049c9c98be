package seal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/testkit/golden"
)

// madeUp is a keyring that never changes, so that what was sealed with it can always be opened.
func madeUp(t *testing.T) *Keyring {
	t.Helper()
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	k := new(Keyring)
	for i, id := range []string{"a-made-up-key", "another-made-up-key"} {
		private, err := ecdsa.ParseRawPrivateKey(elliptic.P256(),
			bytes.Repeat([]byte{byte(i + 1)}, 32))
		if err != nil {
			t.Fatal(err)
		}
		k.login = append(k.login, loginKey{id, at.AddDate(0, i, 0), private})
		k.store = append(k.store, storeKey{
			strings.Repeat(string(rune('a'+i)), keyIDSize),
			at.AddDate(0, i, 0),
			bytes.Repeat([]byte{byte(i + 3)}, masterSize),
		})
	}
	return k
}

// A keyring file of every version stays readable: without it the stored tokens are lost.
func TestKeyringFilesStayReadable(t *testing.T) {
	written := func(t *testing.T, k *Keyring) []byte {
		t.Helper()
		raw, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	read := func(t *testing.T, kept []byte) []byte {
		k, err := ParseKeyring(kept)
		if err != nil {
			t.Fatal(err)
		}
		return written(t, k)
	}
	golden.Check(t, "testdata/keyring", written(t, madeUp(t)), read)
}

// What every version has sealed opens.
func TestWhatWasSealedOpens(t *testing.T) {
	k := madeUp(t)
	files, err := filepath.Glob("testdata/sealed/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var kept struct {
			Plain, Associated string
			Blob              []byte // by Seal
			Login             string // by SealLogin
		}
		if err := json.Unmarshal(raw, &kept); err != nil {
			t.Fatal(err)
		}
		plain, err := k.Open(kept.Blob, []byte(kept.Associated))
		if err != nil || string(plain) != kept.Plain {
			t.Errorf("%s: the blob holds %q, %v", file, plain, err)
		}
		l, err := k.OpenLogin(kept.Login)
		if err != nil || l.User != "jane@example.com" ||
			l.Refresh.Reveal() != "a-made-up-refresh-token" {
			t.Errorf("%s: the login is of %q, %v", file, l.User, err)
		}
	}
}
