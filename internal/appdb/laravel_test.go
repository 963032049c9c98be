package appdb_test

import (
	"encoding/base64"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/testkit"
)

// decrypts is what Laravel's Encrypter does with a payload, from its source: MAC first, then
// openssl_decrypt.
const decrypts = `
[$_, $key, $payload, $cipher] = $argv;
$key = base64_decode($key);
$p = json_decode(base64_decode($payload), true);
if (!is_array($p)) { exit("no payload"); }
foreach (["iv", "value", "mac"] as $item) {
	if (!isset($p[$item]) || !is_string($p[$item])) exit("no $item");
}
if (isset($p["tag"]) && !is_string($p["tag"])) exit("no tag");
if (strlen(base64_decode($p["iv"], true)) !== openssl_cipher_iv_length($cipher)) exit("iv");
if (!hash_equals(hash_hmac("sha256", $p["iv"].$p["value"], $key), $p["mac"])) exit("mac");
echo openssl_decrypt($p["value"], $cipher, $key, 0, base64_decode($p["iv"]));
`

// ciphers are the sizes of Laravel's keys, in bytes.
var ciphers = map[string]int{"aes-256-cbc": 32, "aes-128-cbc": 16}

// crypter has a key that is a letter again and again.
func crypter(t *testing.T, letter string, size int) (key string, c *appdb.Crypter) {
	t.Helper()
	key = base64.StdEncoding.EncodeToString([]byte(strings.Repeat(letter, size)))
	c, err := appdb.NewCrypter(secret.New("base64:" + key))
	if err != nil {
		t.Fatal(err)
	}
	return key, c
}

// PHP opens what is written, as Laravel's encrypted cast does, with both of its ciphers.
func TestLaravelOpensIt(t *testing.T) {
	php := testkit.Program(t, "php")
	for cipher, size := range ciphers {
		key, c := crypter(t, "k", size)
		for _, text := range []string{"", "eyJhbGciOi.J9.x", strings.Repeat("ä", 500),
			"0123456789abcdef"} {
			out, err := exec.Command(php, "-r", decrypts, "--", key, c.Encrypt(text),
				cipher).Output()
			if err != nil || string(out) != text {
				t.Errorf("%s: %q was read as %q, %v", cipher, text, out, err)
			}
		}
		if first, second := c.Encrypt("x"), c.Encrypt("x"); first == second {
			t.Error("two payloads of a text are the same")
		}
	}
	for _, bad := range []string{"", "base64:", "base64:c2hvcnQ=", strings.Repeat("k", 32)} {
		if _, err := appdb.NewCrypter(secret.New(bad)); err == nil {
			t.Errorf("%q is taken for an APP_KEY", bad)
		}
	}
}

// encrypts is what Laravel's Encrypter does with a text, from its source.
const encrypts = `
[$_, $key, $text, $cipher] = $argv;
$key = base64_decode($key);
$iv = random_bytes(openssl_cipher_iv_length($cipher));
$value = openssl_encrypt($text, $cipher, $key, 0, $iv);
$iv = base64_encode($iv);
$mac = hash_hmac("sha256", $iv.$value, $key);
echo base64_encode(json_encode(["iv" => $iv, "value" => $value, "mac" => $mac, "tag" => ""],
	JSON_UNESCAPED_SLASHES));
`

// What PHP writes as Laravel's encrypted cast does is opened, with both ciphers, by its key alone.
func TestWhatLaravelEncryptsIsOpened(t *testing.T) {
	php := testkit.Program(t, "php")
	for cipher, size := range ciphers {
		key, c := crypter(t, "k", size)
		_, other := crypter(t, "o", size)
		for _, text := range []string{"", "eyJhbGciOi.J9.x", strings.Repeat("ä", 500)} {
			out, err := exec.Command(php, "-r", encrypts, "--", key, text, cipher).Output()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := c.Decrypt(string(out)); got != text || err != nil {
				t.Errorf("%s: %q was read as %q, %v", cipher, text, got, err)
			}
			if _, err := other.Decrypt(string(out)); !errors.Is(err, appdb.ErrKey) {
				t.Errorf("%s: another key: %v", cipher, err)
			}
		}
		for _, plain := range []string{"", "rt-plain", "e30=", "eyJpdiI6IiJ9"} {
			if _, err := c.Decrypt(plain); !errors.Is(err, appdb.ErrPlain) {
				t.Errorf("%q: %v", plain, err)
			}
		}
	}
}
