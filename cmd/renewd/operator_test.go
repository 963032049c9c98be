package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/api"
	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// acts are the operator's acts that are on record, oldest first: who, what, to what.
func acts(t *testing.T, env []string) (all []string) {
	t.Helper()
	out := want(t, env, exitDone, "", "replay", "--since", "1h", "--type", "operator.acted",
		"-o", "json")
	for line := range strings.Lines(out) {
		var e api.Outcome
		var d schema.Acted
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		err := json.Unmarshal(e.Data, &d)
		if err != nil || e.Time.IsZero() || e.Source != daemon.Source {
			t.Fatalf("%s: %v", line, err)
		}
		all = append(all, d.By+" "+d.Act+" "+strings.Join(d.About, ","))
	}
	return all
}

// Each act of an operator is on record, once, with who did what to what.
func TestOperatorsActsAreOutcomes(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t),
		"RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_BY=kim",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "", "streams", "apply") // changes nothing
	start(t, append(slices.Clone(env), "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	want(t, env, exitDone, "", "keys", "rotate", "--by", "jo")
	var keys []struct {
		ID  string
		Use string
	}
	err := json.Unmarshal([]byte(want(t, env, exitDone, "", "keys", "list", "-o", "json")), &keys)
	if err != nil {
		t.Fatal(err)
	}
	want(t, env, exitDone, "", "subscribers", "add", "shop")
	want(t, env, exitDone, "", "subscribers", "remove", "shop", "--by", "jo")
	want(
		t,
		env,
		exitDone,
		"",
		"store",
		"accept",
		"--yes",
		"--provider",
		"propelauth",
		"--user",
		"jane",
	)
	want(t, env, exitDone, "", "keys", "publish")

	got := acts(t, env)
	if len(got) != 6 ||
		!strings.HasPrefix(got[0], "kim streams.apply LOGINS,REQUESTS,RENEWALS,OUTCOMES,") {
		t.Fatalf("on record is\n%s", strings.Join(got, "\n"))
	}
	fresh := keys[1].ID + "," + keys[len(keys)-1].ID
	for i, w := range []string{
		"jo keys.rotate " + fresh, "kim subscribers.add shop", "jo subscribers.remove shop",
		"kim store.accept propelauth", "kim keys.publish " + keys[0].ID,
	} {
		if got[i+1] != w {
			t.Errorf("on record is %q, want %q", got[i+1], w)
		}
	}
	want(t, env, exitDone, "jo: keys rotate", "replay", "--since", "1h", "--type", "operator.acted")
	out := want(t, env, exitDone, "", "replay", "--since", "1h", "--provider", "propelauth")
	if strings.Contains(out, "operator.acted") {
		t.Errorf("among one provider's outcomes:\n%s", out)
	}

	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(
		t,
		env,
		exitDone,
		"user.synced",
		"publish",
		"login",
		"--user",
		"jane",
		"--tokens-file",
		tokens,
		"--wait",
	)
	want(t, env, exitDone, "erased", "user", "forget", "jane", "--yes", "--by", "jo")
	want(t, env, exitDone, "erased by jo", "replay", "--since", "1h", "--user", "jane")
	if again := acts(t, env); len(again) != len(got) {
		t.Errorf("an erasure is on record twice: %q", again[len(got):])
	}
}

// What cannot be told is not done, unless the operator insists.
func TestActsThatCannotBeToldAreRefused(t *testing.T) {
	t.Parallel()
	url, folder := natsServer(t), t.TempDir()
	env := []string{
		"RENEWD_NATS_URL=" + url,
		"RENEWD_DATA_DIR=" + folder,
		"RENEWD_AUTH_URL=https://auth.example.com",
		"RENEWD_CLIENT_ID=" + devClient,
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	js := client(t, url)
	outcomes, err := js.Stream(t.Context(), topology.Outcomes)
	if err != nil {
		t.Fatal(err)
	}
	sealed := outcomes.CachedInfo().Config
	sealed.Sealed = true // takes nothing
	if _, err := js.UpdateStream(t.Context(), sealed); err != nil {
		t.Fatal(err)
	}
	ring := func() []byte {
		raw, err := os.ReadFile(filepath.Join(folder, "keys.json"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	before := ring()
	want(t, env, exitFailed, "--unrecorded", "keys", "rotate", "--by", "jo")
	if !bytes.Equal(ring(), before) {
		t.Error("the keys were rotated, and nothing tells of it")
	}
	want(
		t,
		env,
		exitFailed,
		`keep this elsewhere: {"act":"keys.publish","by":"jo"`,
		"keys",
		"publish",
		"--by",
		"jo",
	)
	if there, err := js.Stream(t.Context(), "KV_renewd_keys"); err != nil ||
		there.CachedInfo().State.Msgs != 0 {
		t.Errorf("a key was published, and nothing tells of it: %v", err)
	}
	want(t, env, exitDone, `"by":"jo"`, "keys", "rotate", "--by", "jo", "--unrecorded")
	if bytes.Equal(ring(), before) {
		t.Error("--unrecorded did nothing")
	}
	want(t, env, exitUsage, "one line", "keys", "publish", "--by", "j\no")
}
