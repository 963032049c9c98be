package main

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/reconcile"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/schema"
)

// publishedLater makes the store look restored: an outcome of a later record, with another refresh
// token, is there.
func publishedLater(t *testing.T, url, user string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	e, err := stream.NewEngine(js, stream.Config{})
	if err != nil {
		t.Fatal(err)
	}
	version := time.Now().UnixMilli() + 10_000
	data, err := json.Marshal(schema.Synced{
		Cause:   schema.Cause{ID: "later"},
		Version: version,
		Changed: []string{},
	})
	if err != nil {
		t.Fatal(err)
	}
	event := schema.Event{
		ID:       "later-" + user,
		Source:   daemon.Source,
		Type:     schema.UserSynced,
		Provider: "propelauth",
		User:     user,
		Time:     time.Now(),
		Data:     data,
	}
	mark := grant.Mark{Version: version, Token: "another"}
	key := grant.Key{Provider: "propelauth", User: user}
	timer := grant.Work{Cause: schema.Cause{ID: "timer", Type: schema.CauseTimer}, Mark: mark}
	err = errors.Join(e.PublishMarked(t.Context(), event, mark),
		e.Arm(t.Context(), key, time.Now().Add(time.Hour), timer))
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreAfterARestore(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_FLOOR=1s",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "nothing to compare", "store", "check")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	for _, user := range []string{"jane", "joe", "fine"} {
		tokens := write(t, user+".json", standIn.login(t, user))
		want(t, env, exitDone, "user.synced", "publish", "login", "--user", user, "--tokens-file",
			tokens, "--wait")
	}
	want(t, env, exitDone, "superseded  0", "store", "check")
	publishedLater(t, url, "jane")
	publishedLater(t, url, "joe")
	want(t, env, exitFailed, "propelauth/joe", "store", "check", "--users")
	want(t, env, exitFailed, "superseded", "publish", "refresh-due", "--user", "jane", "--want",
		"tokens", "--wait")
	want(t, env, exitDone, "suspended", "user", "show", "jane")
	var got reconcile.Comparison
	out := want(t, env, exitFailed, "store accept", "store", "check", "-o", "json")
	err := json.Unmarshal([]byte(out), &got)
	if err != nil || got.Grants != 3 || got.Live != 2 || got.Superseded != 2 || got.Waiting != 1 ||
		got.Outcomes < 6 {
		t.Errorf("got %s, %v", out, err)
	}
	want(t, env, exitUsage, "--yes", "store", "accept")
	want(t, env, exitDone, "accepted 0", "store", "accept", "--yes", "--provider", "other")
	want(t, env, exitDone, "accepted 1", "store", "accept", "--yes", "--user", "jane")
	want(t, env, exitDone, "accepted 1", "store", "accept", "--yes")
	want(t, env, exitDone, "superseded  0", "store", "check")
	want(t, env, exitDone, "tokens renewed", "publish", "refresh-due", "--user", "joe", "--want",
		"tokens", "--wait")
}
