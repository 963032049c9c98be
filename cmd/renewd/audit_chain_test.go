package main

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/topology"
)

// What the operator's password, or NATS' own files, allow is found by a chain that lies elsewhere.
func TestOutcomesAreChained(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c", "RENEWD_BY=kim",
	}
	file := filepath.Join(t.TempDir(), "chain")
	want(t, env, exitDone, "", "streams", "apply")
	for _, name := range []string{"shop", "crm"} {
		want(t, env, exitDone, "", "subscribers", "add", name)
	}
	chain := func() (got chained) {
		t.Helper()
		out := want(t, env, exitDone, "", "audit", "chain", file, "-o", "json")
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := chain()
	want(t, env, exitDone, "", "subscribers", "remove", "crm")
	if now := chain(); before.Appended != 3 || now.Appended != 1 || now.Outcomes != 4 {
		t.Errorf("%+v, then %+v", before, now)
	}
	want(t, env, exitDone, "present  4", "audit", "verify", file, "--seen", before.Head)
	want(t, env, exitFailed, "has no head", "audit", "verify", file, "--seen", "another")

	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	outcomes, err := js.Stream(t.Context(), topology.Outcomes)
	if err == nil {
		err = outcomes.DeleteMsg(t.Context(), 2)
	}
	if err != nil {
		t.Fatal(err)
	}
	want(t, env, exitFailed, "missing  1", "audit", "verify", file)
	bad := write(t, "bad", string(readAll(t, file))+"one line more\n")
	want(t, env, exitFailed, "line 6 does not follow", "audit", "verify", bad)
	want(t, env, exitUsage, "line 6 does not follow", "audit", "chain", bad)
}
