package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/internal/topology"
)

// Where clients stand in the settings, whoever can write into NATS makes none.
func TestClientsOfTheSettingsAreAllThereAre(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_STREAMS_APPLY=true",
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_HTTP_ADDR=127.0.0.1:0", "RENEWD_BY=jo",
	}
	want(t, env, exitDone, "", "keys", "new")
	add := []string{"clients", "add", "shop", "--may", "read", "--provider", "propelauth",
		"--settings"}
	code, entry, secret := runIn(t, env, add...)
	if code != exitDone || !strings.Contains(entry, "providers: [propelauth]") {
		t.Fatal(code, entry)
	}
	lines := strings.Fields(secret)
	secret = lines[len(lines)-1]
	env = append(env, "RENEWD_CONFIG="+write(t, "renewd.yaml", entry))
	addr := start(t, env)

	forged, stolen, err := clients.New("evil", clients.Rights(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := client(t, url).KeyValue(t.Context(), topology.BucketClients)
	if err != nil {
		t.Fatal(err)
	}
	if err := clients.Add(t.Context(), kv, forged); err != nil {
		t.Fatal(err)
	}
	for secret, status := range map[string]int{secret: http.StatusNotFound,
		stolen: http.StatusUnauthorized} {
		req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/v1/users/propelauth/jane", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+secret)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("a client is answered %d, want %d", res.StatusCode, status)
		}
	}
	want(t, env, exitDone, "shop  read  propelauth  settings", "clients", "list")
	want(t, env, exitUsage, "--settings", "clients", "add", "crm", "--may", "read")
	want(t, env, exitUsage, "take the entry out", "clients", "remove", "shop")
	var again struct{ Digest, Secret string }
	text := want(t, env, exitDone, "", append(add, "-o", "json")...)
	if err := json.Unmarshal([]byte(text), &again); err != nil || again.Digest == "" ||
		strings.Contains(entry, again.Digest) {
		t.Errorf("%s: %v", text, err)
	}
}
