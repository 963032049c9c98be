package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/seal"
	"github.com/renewd/renewd/internal/settings"
)

// apart is a keyring in two files.
type apart struct{ login, store string }

func splitKeys(t *testing.T, env []string) apart {
	t.Helper()
	dir := t.TempDir()
	a := apart{filepath.Join(dir, "login.json"), filepath.Join(dir, "store.json")}
	want(t, env, exitDone, "RENEWD_LOGIN_KEYS_FILE", "keys", "split",
		"--login", a.login, "--store", a.store)
	return a
}

func (a apart) env() []string {
	return []string{"RENEWD_LOGIN_KEYS_FILE=" + a.login, "RENEWD_KEYS_FILE=" + a.store}
}

// From one file to two, worker by worker: nobody signs in again, and no login is lost. Then keys
// are rotated, promoted and retired in two files as in one, and a worker without login keys takes
// part.
func TestWorkersGoFromOneKeyringToTwo(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	whole := filepath.Join(t.TempDir(), "keys.json")
	common := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_STREAMS_APPLY=true",
		"RENEWD_HTTP_ADDR=127.0.0.1:0",
	}
	with := func(more ...string) []string { return append(slices.Clone(common), more...) }
	single := with("RENEWD_KEYS_FILE=" + whole)
	serve := func(env []string) (stop func()) {
		t.Helper()
		_, stop = stoppable(t, env, `renewd is up.* http=(\S+)`, "serve")
		return stop
	}
	signIn := func(user string) {
		t.Helper()
		tokens := write(t, "tokens.json", standIn.login(t, user))
		want(t, single, exitDone, "user.synced", "publish", "login", "--user", user,
			"--tokens-file", tokens, "--wait")
	}
	renew := func(user string) {
		t.Helper()
		want(t, single, exitDone, "user.synced", "publish", "refresh-due", "--user", user,
			"--want", "tokens", "--wait")
	}
	want(t, single, exitDone, "", "keys", "new")
	stopSingle := serve(single)
	signIn("before")
	files := splitKeys(t, single)
	want(t, single, exitFailed, "exists", "keys", "split",
		"--login", files.login, "--store", files.store)
	both := with(files.env()...)
	stopBoth := serve(both)
	storeOnly := with("RENEWD_KEYS_FILE="+files.store, "RENEWD_TAKE_LOGINS=false")
	serve(storeOnly)
	signIn("meanwhile")
	stopSingle()
	signIn("after")
	renew("before")

	want(t, both, exitDone, "there are fresh keys", "keys", "rotate")
	promoteAtTwo(t, both)
	signIn("promoted")
	var keys []listedKey
	out := want(t, storeOnly, exitDone, "", "keys", "list", "-o", "json")
	if err := json.Unmarshal([]byte(out), &keys); err != nil || len(keys) != 2 ||
		keys[0].Use != seal.UseStore {
		t.Fatalf("%v: %s", err, out)
	}
	retired := false
	for end := time.Now().Add(2 * time.Minute); !retired && time.Now().Before(end); <-nextLook() {
		code, _, errs := runIn(t, storeOnly, "keys", "retire", keys[0].ID)
		if retired = code == exitDone; !retired && !strings.Contains(errs, "is needed by") &&
			!strings.Contains(errs, "does not say") {
			t.Fatalf("retire: %s", errs)
		}
	}
	if !retired {
		t.Fatal("never retired")
	}
	stopBoth()
	for _, user := range []string{"before", "meanwhile", "after", "promoted"} {
		renew(user) // by the worker without login keys
	}
	found := diagnosis(t, storeOnly, exitDone)
	is(t, found["keyring"], admin.Fine, "for the store alone")
	is(t, found["public key"], admin.Fine, "takes no logins")

	// Store keys of another installation beside the right login keys are refused.
	other := filepath.Join(t.TempDir(), "other.json")
	want(t, []string{"RENEWD_KEYS_FILE=" + other, "RENEWD_TAKE_LOGINS=false"}, exitUsage,
		"does not listen", "keys", "new")
	_, err := keyfile.File{Path: other, Use: seal.UseStore}.Make(t.Context(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	foreign := with("RENEWD_LOGIN_KEYS_FILE="+files.login, "RENEWD_KEYS_FILE="+other)
	want(t, foreign, exitUsage, "does not have the store keys", "serve")
	// The right ones are lost for good.
	want(t, foreign, exitDone, "", "keys", "publish", "--use", "store")
	serve(foreign)
}

// A command reads the keys that it needs, and no other: the file of the other ones is damaged here.
func TestCommandsReadTheKeysThatTheyNeed(t *testing.T) {
	t.Parallel()
	r := startRetiring(t)
	r.save(t, "u", func(*grant.Grant) {})
	files := splitKeys(t, r.env)
	damaged, too := write(t, "damaged.json", "no keyring"), write(t, "damaged.json", "no keyring")
	env := func(login, store string) []string {
		return append(slices.Clone(r.env), apart{login, store}.env()...)
	}
	fails := map[string]string{ // for another reason than keys
		"user forget u": "add --yes",
		"keys list":     "malformed keyring",
		"keys rotate":   "malformed keyring",
	}
	for need, commands := range map[string][]string{
		"neither": {
			"config check", "streams plan", "replay", "subscribers list", "clients list",
			"provider list", "publish refresh-due --user u",
		},
		"store": {
			"user show u", "user hash u", "user forget u", "store check", "store accept --yes",
			"keys list --use store", "keys rotate --use store", "keys promote --use store",
			"keys publish --use store",
		},
		"login": {
			"keys public", "keys publish --use login", "keys list --use login",
			"keys rotate --use login", "keys public --next", "keys promote --use login",
		},
		"both": {"keys list", "keys rotate"},
	} {
		with := map[string][]string{
			"neither": env(damaged, too), "store": env(damaged, files.store),
			"login": env(files.login, damaged), "both": env(files.login, damaged),
		}[need]
		for _, c := range commands {
			code, out, errs := runIn(t, with, strings.Fields(c)...)
			if (code == exitDone) != (fails[c] == "") || !strings.Contains(out+errs, fails[c]) {
				t.Errorf("%s, which needs %s: %d, %s%s", c, need, code, out, errs)
			}
		}
	}
	for use, path := range map[string]string{
		seal.UseLogin: files.login, seal.UseStore: files.store,
	} {
		ring, err := keyfile.File{Path: path, Use: use}.Load(t.Context())
		if keys := mustRing(t, ring, err).Keys(); len(keys) != 3 {
			t.Errorf("%s has %d keys after a rotation", path, len(keys))
		}
	}
}

// A file that has other keys than it is for is named, with what to do.
func TestMixedUpKeyFilesAreRefused(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "keys.json")
	one := []string{"RENEWD_KEYS_FILE=" + whole}
	want(t, one, exitDone, "", "keys", "new")
	files := splitKeys(t, one)
	for says, env := range map[string][]string{
		"it has login keys too":   apart{files.login, whole}.env(),
		"it has store keys too":   apart{whole, files.store}.env(),
		"mixed up":                apart{files.store, files.login}.env(),
		"it has store keys alone": {"RENEWD_KEYS_FILE=" + files.store},
		"it has login keys alone": {"RENEWD_KEYS_FILE=" + files.login},
		"is keys_file":            apart{whole, whole}.env(),
		"login_keys_wrap: needs":  append(files.env(), "RENEWD_LOGIN_KEYS_WRAP=cat"),
		"set RENEWD_LOGIN_KEYS_WRAP": append(files.env(),
			"RENEWD_LOGIN_KEYS_UNWRAP=cat"),
		"login_keys_unwrap: no-such-program: no": append(files.env(),
			"RENEWD_LOGIN_KEYS_UNWRAP=no-such-program"),
	} {
		code, out, errs := runIn(t, env, "keys", "rotate")
		if code == exitDone || !strings.Contains(strings.ToLower(errs), strings.ToLower(says)) {
			t.Errorf("want %q: %d, %s%s", says, code, out, errs)
		}
	}
	joined := filepath.Join(t.TempDir(), "joined.json")
	want(t, one, exitUsage, "RENEWD_LOGIN_KEYS_FILE", "keys", "join", joined)
	want(t, files.env(), exitDone, "made "+joined, "keys", "join", joined)
	want(t, files.env(), exitUsage, "exists", "keys", "join", joined)
	if string(readAll(t, joined)) != string(readAll(t, whole)) {
		t.Error("the keyring that was joined is not the one that was split")
	}
}

// Each file has programs of its own that encrypt it, or those of keys_file.
func TestBothKeyFilesAreWrapped(t *testing.T) {
	t.Parallel()
	for name, login := range map[string]wrapping{
		"its own": {
			settings.Command{"sh", "-c", "tac | rev"}, settings.Command{"sh", "-c", "rev | tac"},
		},
		"those of keys_file": {},
	} {
		dir := t.TempDir()
		files := apart{filepath.Join(dir, "login"), filepath.Join(dir, "store")}
		env := append(wrapping{settings.Command{"rev"}, settings.Command{"rev"}}.env(t),
			files.env()...)
		for _, e := range login.env(t) {
			env = append(env, strings.Replace(e, "RENEWD_KEYS", "RENEWD_LOGIN_KEYS", 1))
		}
		for _, step := range []string{"new", "rotate", "list", "promote", "list"} {
			want(t, env, exitDone, "", "keys", step)
		}
		if code, out, errs := runIn(t, env, "keys", "new"); code == exitDone ||
			!strings.Contains(errs, "exists") {
			t.Errorf("%s: made again: %s%s", name, out, errs)
		}
		want(t, env, exitDone, "", "keys", "new", "--if-missing")
		for _, path := range []string{files.login, files.store} {
			if raw := string(readAll(t, path)); strings.Contains(raw, "master") ||
				strings.Contains(raw, `"kty"`) {
				t.Errorf("%s: %s is in clear", name, path)
			}
		}
		if err := os.Remove(files.store); err != nil {
			t.Fatal(err)
		}
		want(t, append(embedded(t, t.TempDir(), standInProcess{"127.0.0.1:1"}), env...), exitUsage,
			"some are there", "serve")
	}
}
