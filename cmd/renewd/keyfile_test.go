package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/testkit"
)

// wrapping are programs that encrypt a keyring, and decrypt it again.
type wrapping struct{ unwrap, wrap settings.Command }

func (w wrapping) env(t *testing.T) []string {
	t.Helper()
	var env []string
	add := func(name string, c settings.Command) {
		t.Helper()
		raw, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if c != nil {
			env = append(env, name+"="+string(raw))
		}
	}
	add("RENEWD_KEYS_UNWRAP", w.unwrap)
	add("RENEWD_KEYS_WRAP", w.wrap)
	return env
}

// do runs a program that a test needs and returns what it says.
func do(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// The keyring is kept encrypted by the programs that docs/security.md names, as far as they run
// without a service.
func TestTheKeyringIsWrappedByRealPrograms(t *testing.T) {
	t.Parallel()
	for program, setUp := range map[string]func(t *testing.T, dir string) wrapping{
		"age": func(t *testing.T, dir string) wrapping {
			key := filepath.Join(dir, "age.key")
			do(t, "age-keygen", "-o", key)
			recipient := strings.TrimSpace(do(t, "age-keygen", "-y", key))
			return wrapping{
				settings.Command{"age", "-d", "-i", key}, settings.Command{"age", "-r", recipient},
			}
		},
		"systemd-creds": func(t *testing.T, dir string) wrapping {
			secret := "SYSTEMD_CREDENTIAL_SECRET=" + filepath.Join(dir, "secret")
			creds := settings.Command{"env", secret, "systemd-creds"}
			wrap := append(copyOf(creds), "encrypt", "--with-key=host", "--name=renewd-keys", "-",
				"-")
			return wrapping{append(copyOf(creds), "decrypt", "--name=renewd-keys", "-", "-"), wrap}
		},
		"gpg": func(t *testing.T, dir string) wrapping {
			home := filepath.Join(dir, "gnupg")
			if err := os.Mkdir(home, 0o700); err != nil {
				t.Fatal(err)
			}
			gpg := settings.Command{"gpg", "--homedir", home, "--batch", "--quiet"}
			t.Cleanup(func() { do(t, "gpgconf", "--homedir", home, "--kill", "all") })
			key := []string{"--quick-generate-key", "renewd", "default", "default", "never"}
			do(t, gpg[0], append(append(copyOf(gpg[1:]), "--passphrase", ""), key...)...)
			wrap := append(copyOf(gpg), "--trust-model", "always", "--encrypt", "--recipient",
				"renewd")
			return wrapping{append(copyOf(gpg), "--decrypt"), wrap}
		},
		"openssl": func(t *testing.T, dir string) wrapping {
			key, cert := filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
			do(t, "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=renewd",
				"-keyout", key, "-out", cert)
			cms := settings.Command{"openssl", "cms", "-binary"}
			return wrapping{
				append(copyOf(cms), "-decrypt", "-inform", "DER", "-inkey", key, "-recip", cert),
				append(copyOf(cms), "-encrypt", "-aes-256-gcm", "-outform", "DER", cert),
			}
		},
	} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			testkit.Program(t, program)
			dir, err := os.MkdirTemp("", "renewd") // short: gpg's agent listens on a socket there
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(dir) })
			path := filepath.Join(dir, "keys")
			w := setUp(t, dir)
			env := append(w.env(t), "RENEWD_KEYS_FILE="+path)
			for _, step := range []struct{ says, command string }{
				{"made " + path, "new"}, {"only open for now", "rotate"}, {"not yet", "list"},
				{"seal from now on", "promote"}, {"opens only", "list"},
			} {
				want(t, env, exitDone, step.says, "keys", step.command)
				raw, err := os.ReadFile(path)
				if err != nil || bytes.Contains(raw, []byte("master")) {
					t.Fatalf("after keys %s the file is in clear, %v", step.command, err)
				}
			}
			want(t, []string{"RENEWD_KEYS_FILE=" + path}, exitFailed, "malformed keyring", "keys",
				"list")
			ring, err := keyfile.File{
				Path: path, Unwrap: w.unwrap, Wrap: w.wrap,
			}.Load(t.Context())
			if keys := mustRing(t, ring, err).Keys(); len(keys) != 4 {
				t.Errorf("%d keys, want 4", len(keys))
			}
		})
	}
}

// copyOf is one that append does not write over.
func copyOf(c settings.Command) settings.Command { return append(settings.Command(nil), c...) }

// Whatever goes wrong in a program leaves the file as it is, and says why without a secret.
func TestWrappingThatFails(t *testing.T) {
	t.Setenv("RENEWD_NATS_PASSWORD", "of renewd")
	path := filepath.Join(t.TempDir(), "keys.json")
	want(t, []string{"RENEWD_KEYS_FILE=" + path}, exitDone, "", "keys", "new")
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	plain := settings.Command{"cat"}
	sh := func(script string) settings.Command {
		return settings.Command{"sh", "-c", script, "argument"}
	}
	for _, c := range []struct {
		unwrap, wrap settings.Command
		says         string
	}{
		{plain, nil, "RENEWD_KEYS_WRAP"},
		{plain, sh("head -c 100"), "cannot be read back"},
		{plain, sh("cat; echo no key >&2; exit 3"), "keys_wrap: sh: exit status 3: no key"},
		{sh("cat; env >&2; exit 1"), plain, "keys_unwrap: sh: exit status 1"},
		{sh("exit 1"), plain, "it said nothing"},
		{sh("cat >/dev/null; echo out"), plain, "malformed keyring"},
		{sh("cat >/dev/null; cat /dev/zero"), plain, "more than 1048576 bytes"},
		{
			settings.Command{"no-such-program"},
			plain,
			"keys_unwrap: no-such-program: no such program\n",
		},
		{
			settings.Command{"/no/such/program"},
			plain,
			"keys_unwrap: /no/such/program: no such program\n",
		},
	} {
		env := append(wrapping{c.unwrap, c.wrap}.env(t), "RENEWD_KEYS_FILE="+path)
		code, out, errs := runIn(t, env, "keys", "rotate")
		if code != exitFailed || !strings.Contains(errs, c.says) {
			t.Errorf("%q, %q: got %d, %s%s", c.unwrap, c.wrap, code, out, errs)
		}
		for _, secret := range []string{"master", "of renewd", "argument"} {
			if strings.Contains(out+errs, secret) {
				t.Errorf("%q, %q: shows %s: %s%s", c.unwrap, c.wrap, secret, out, errs)
			}
		}
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, was) {
			t.Fatalf("%q, %q: the file was changed, %v", c.unwrap, c.wrap, err)
		}
	}
}
