package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/publishers"
)

// typed runs a command with text on its standard input.
func typed(t *testing.T, env []string, text string, args ...string) (code int, said string) {
	t.Helper()
	var out bytes.Buffer
	code = run(t.Context(), append([]string{"renewd"}, args...), env, strings.NewReader(text), &out,
		&out)
	return code, out.String()
}

// A root is made and signs on a machine without settings; publishers that trust it, and nothing
// else, seal through a rotation.
func TestKeysAreSignedByARoot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	server := natsServer(t)
	env := []string{"RENEWD_NATS_URL=" + server, "RENEWD_KEYS_FILE=" + at("keys.json")}
	newRoot := func(name string) (public string) {
		return strings.TrimSpace(want(t, nil, exitDone, "", "keys", "root", "new", "--out",
			at(name)))
	}
	sign := func(root, to string, more ...string) (file string) {
		t.Helper()
		set := want(t, env, exitDone, "", append([]string{"keys", "public"}, more...)...)
		code, signed := typed(t, nil, set, "keys", "sign", "--root", at(root), "--for", "30d")
		if code != exitDone {
			t.Fatal(signed)
		}
		if err := os.WriteFile(at(to), []byte(signed), 0o600); err != nil {
			t.Fatal(err)
		}
		return at(to)
	}
	public := newRoot("root.key")
	newRoot("other.key")
	if info, err := os.Stat(at("root.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("root.key: %v, %v", info.Mode(), err)
	}
	want(t, nil, exitFailed, "exists", "keys", "root", "new", "--out", at("root.key"))

	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	nc, err := nats.Connect(server)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	login := func() error {
		p, err := publishers.New(nc, publishers.WithKeyRoot(public))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Login(t.Context(), "propelauth", "u", publishers.Tokens{AccessToken: "a"})
		return err
	}
	want(t, env, exitDone, "", "keys", "publish", "--signed", sign("root.key", "first.jwt"))
	if err := login(); err != nil {
		t.Error(err)
	}

	want(t, env, exitDone, "", "keys", "rotate")
	want(t, env, exitFailed, "not signed yet", "keys", "promote")
	want(t, env, exitFailed, "another key", "keys", "promote", "--signed", at("first.jwt"))
	other := sign("other.key", "other.jwt", "--next")
	want(t, env, exitFailed, "another root", "keys", "promote", "--signed", other)
	second := sign("root.key", "second.jwt", "--next")
	want(t, env, exitDone, "seal from now on", "keys", "promote", "--signed", second)
	if err := login(); err != nil {
		t.Error(err)
	}
	want(t, env, exitFailed, "another key", "keys", "publish", "--signed", at("first.jwt"))
	want(t, env, exitFailed, "no signed key set", "keys", "publish", "--signed", at("keys.json"))
	want(t, env, exitDone, "", "keys", "publish", "--signed", sign("root.key", "again.jwt"))
	if err := login(); err != nil {
		t.Error(err)
	}
}

// What is no key set, or no root, is not signed.
func TestKeysSignNamesTheMistake(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "root.key")
	want(t, nil, exitDone, "", "keys", "root", "new", "--out", root)
	for says, args := range map[string][]string{
		"no JSON Web Key Set": {"--root", root},
		"want more than 0":    {"--root", root, "--for", "0s"},
		"no such file":        {"--root", root + ".gone"},
	} {
		code, said := typed(t, nil, "x", append([]string{"keys", "sign"}, args...)...)
		if code == exitDone || !strings.Contains(said, says) {
			t.Errorf("%q: %d, %s", args, code, said)
		}
	}
}
