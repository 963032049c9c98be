package seal_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/renewd/renewd/internal/testkit"
)

const examples = "../../docs/examples/seal-login"

// The examples that the README points other languages to seal what this package opens.
func TestNodeSeals(t *testing.T) {
	for _, script := range []string{"seal-webcrypto.mjs", "seal.mjs"} {
		t.Run(script, func(t *testing.T) {
			dir := t.TempDir()
			copyAll(t, dir, script, "package.json", "package-lock.json", ".npmrc")
			if script == "seal.mjs" {
				npm := exec.Command(testkit.Program(t, "npm"), "ci", "--ignore-scripts",
					"--no-audit", "--no-fund")
				npm.Dir = dir
				if out, err := npm.CombinedOutput(); err != nil {
					t.Fatalf("npm ci: %v\n%s", err, out)
				}
			}
			k := ring(t)
			in, err := json.Marshal(map[string]any{
				"jwks": json.RawMessage(k.JWKS()), "provider": "propelauth", "user": "auth0|jürgen",
				"tokens": map[string]any{
					"access_token":  "acc",
					"refresh_token": "ref",
					"expires_in":    1800,
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			node := exec.Command(testkit.Program(t, "node"), script)
			node.Dir, node.Stdin = dir, bytes.NewReader(in)
			out, err := node.Output()
			if err != nil {
				t.Fatalf("node: %v", err)
			}
			l, err := k.OpenLogin(string(bytes.TrimSpace(out)))
			if err != nil || l.User != "auth0|jürgen" || l.Access.Reveal() != "acc" ||
				l.Refresh.Reveal() != "ref" || l.ExpiresIn.Minutes() != 30 {
				t.Errorf("opened %+v, %v", l, err)
			}
		})
	}
}

func copyAll(t *testing.T, to string, names ...string) {
	t.Helper()
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(examples, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(to, name), raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
