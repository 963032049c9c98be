package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/daemon"
	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// The embedded server gets accounts from the very file that is shipped, and the commands connect as
// one of its users. What was stored without accounts is not overlooked, and goes on once its folder
// has the account's name.
func TestEmbeddedAccounts(t *testing.T) { // not parallel: the server's file reads the environment
	accounts := "../../deploy/nats/nats.conf"
	dir := t.TempDir()
	env := []string{
		"RENEWD_DATA_DIR=" + dir, "RENEWD_AUTH_URL=https://127.0.0.1:1", "RENEWD_CLIENT_ID=c",
		"RENEWD_NATS_ACCOUNTS=" + accounts,
		"RENEWD_NATS_LISTEN=" + proc.FreeAddrFor(t), "RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_NATS_USER=renewd", "RENEWD_NATS_PASSWORD=of-renewd",
	}
	for _, user := range []string{"RENEWD", "OPERATOR", "SIGNIN", "SHOP"} {
		name := "RENEWD_NATS_" + user + "_PASSWORD"
		want(t, env, exitFailed, name, "serve")
		t.Setenv(name, map[bool]string{true: "of-renewd", false: "other"}[user == "RENEWD"])
		env = append(env, name+"=is-known")
	}
	storedBefore(t, filepath.Join(dir, "nats"))

	want(t, env, exitFailed, "jetstream/$G", "serve")
	err := os.Rename(filepath.Join(dir, "nats", "jetstream", "$G"),
		filepath.Join(dir, "nats", "jetstream", "RENEWD"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, env, exitDone, "encrypted ", "nats", "encrypt")
	start(t, env)
	want(t, env, exitDone, "jane", "replay")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop")
	want(t, append(env, "RENEWD_NATS_PASSWORD=of-nobody"), exitFailed, "Authorization Violation",
		"subscribers", "list")
	shop := append(env, "RENEWD_NATS_USER=shop", "RENEWD_NATS_PASSWORD=other")
	want(t, shop, exitFailed, "", "streams", "plan") // it has what it is let have, and no more
}

// storedBefore leaves an outcome in the folder of an embedded server without accounts.
func storedBefore(t *testing.T, folder string) {
	t.Helper()
	s, err := natsd.Start(t.Context(), natsd.Config{StoreDir: folder})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Shutdown()
	nc, err := s.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err == nil {
		_, err = topology.Ensure(t.Context(), js, topology.Topology{
			Grants:    true,
			Providers: []topology.Provider{{ID: "propelauth", Concurrency: 64}},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	engine, err := stream.NewEngine(js, stream.Config{})
	if err == nil {
		err = engine.Publish(t.Context(), schema.Event{
			ID:       "e1",
			Source:   daemon.Source,
			Type:     schema.UserSynced,
			Provider: "propelauth",
			User:     "jane",
			Time:     time.Now(),
			Data:     []byte("{}"),
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}
