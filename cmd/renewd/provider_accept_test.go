package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/renewd/renewd/internal/admin"
)

// A provider whose document leads elsewhere after a restart gets no token until an operator accepts
// the host, which is on record.
func TestAProviderThatMovedWaitsForTheOperator(t *testing.T) {
	t.Parallel()
	var moved atomic.Bool
	var issuer string
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/openid-configuration" {
			http.Error(w, `{"error":"invalid_request"}`, http.StatusBadRequest)
			return
		}
		at := issuer
		if moved.Load() {
			at = strings.Replace(issuer, "127.0.0.1", "localhost", 1)
		}
		fmt.Fprintf(w, `{"issuer":%q,"token_endpoint":"%s/token","userinfo_endpoint":"%s/me"}`,
			issuer, at, issuer)
	}))
	t.Cleanup(provider.Close)
	issuer = provider.URL
	elsewhere := strings.Replace(strings.TrimPrefix(issuer, "http://"), "127.0.0.1", "localhost", 1)
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_PROVIDER_ID=acme", "RENEWD_PROVIDER_PRESET=oidc", "RENEWD_AUTH_URL=" + issuer,
		"RENEWD_CLIENT_ID=c",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_STREAMS_APPLY=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	is(t, diagnosis(t, env, exitFailed)["provider acme"], admin.Warning, "it answers")
	out := want(t, env, exitDone, "", "provider", "show", "acme")
	if strings.Contains(out, "hosts") {
		t.Errorf("the doctor has pinned something: %s", out)
	}
	_, stop := stoppable(t, env, `renewd is up.* http=(\S+)`, "serve")
	for !strings.Contains(out, "hosts") {
		out = want(t, env, exitDone, "", "provider", "show", "acme")
	}
	want(t, env, exitDone, "nothing to do", "provider", "accept", "acme")
	stop()
	moved.Store(true)
	_, stop = stoppable(t, env, `(leads elsewhere, and is refused)`, "serve")
	is(t, diagnosis(t, env, exitFailed)["provider acme"], admin.Broken,
		"renewd provider accept acme")
	want(t, env, exitUsage, "add --yes", "provider", "accept", "acme")
	out = want(t, env, exitDone, "accepted", "provider", "accept", "acme", "--yes", "--by", "kim")
	if !strings.Contains(out, "its document says: ") || !strings.Contains(out, elsewhere) {
		t.Errorf("it does not say what it accepts: %s", out)
	}
	is(t, diagnosis(t, env, exitDone)["provider acme"], admin.Warning, "it answers")
	out = want(t, env, exitDone, "provider.accept", "replay", "--type", "operator.acted", "-o",
		"json")
	if !strings.Contains(out, elsewhere) || !strings.Contains(out, "kim") {
		t.Errorf("on record is %s", out)
	}
	stop()

	named := append(env, "RENEWD_ENDPOINT_HOSTS="+elsewhere)
	want(t, named, exitUsage, "endpoint_hosts", "provider", "accept", "acme")
}
