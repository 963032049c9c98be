package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/source/hook"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/hooktest"
)

// postSigned posts a webhook as Svix does, and returns the status of the answer.
func postSigned(t *testing.T, url, secret, id, body string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header = hooktest.Sign(t, secret, "svix-", id, time.Now(), body)
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// A provider's webhooks wake a user and erase one who was deleted there. The source is listed, and
// doctor tells of a message that was not believed.
func TestSources(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	const secret = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3"
	const wrong = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk"
	file := write(t, "renewd.yaml", fmt.Sprintf(`
sources:
  propel:
    kind: propelauth
    provider: propelauth
    secret_file: %s
    forget: true
`, write(t, "secret", secret+"\n")))
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_CONFIG=" + file, "RENEWD_BY=jo",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitFailed, "streams apply", "sources", "list")
	want(t, env, exitDone, "KV_renewd_sources", "streams", "apply")
	want(t, env, exitDone, "propel", "sources", "list")
	is(t, diagnosis(t, env, exitFailed)["sources"], admin.Fine, "1 source")
	url := "http://" + start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0")) + "/v1/hooks/propel"
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		tokens, "--wait")

	const updated = `{"event_type":"user.updated","user_id":"jane"}`
	for _, status := range []int{202, 202} {
		if got := postSigned(t, url, secret, "msg_1", updated); got != status {
			t.Errorf("got %d", got)
		}
	}
	if got := postSigned(t, url, wrong, "msg_2", updated); got != 403 {
		t.Errorf("got %d", got)
	}
	testkit.Eventually(t, "the sync that the webhook asked for", func() bool {
		_, out, _ := runIn(t, env, "replay", "--type", "user.synced", "-o", "json")
		return strings.Count(out, `"/sources/propel"`) == 1 && strings.Contains(out, "msg_1")
	})
	const deleted = `{"event_type":"user.deleted","user_id":"jane"}`
	if got := postSigned(t, url, secret, "msg_3", deleted); got != 202 {
		t.Errorf("got %d", got)
	}
	testkit.Eventually(t, "the erasure", func() bool {
		_, out, _ := runIn(t, env, "replay", "--type", "user.forgotten", "-o", "json")
		return strings.Contains(out, "source propel") && strings.Contains(out, "/sources/propel")
	})
	var line admin.SourceLine
	testkit.Eventually(t, "the figures", func() bool {
		_, out, _ := runIn(t, env, "sources", "list", "-o", "json")
		line = admin.SourceLine{}
		return json.Unmarshal([]byte(out), &line) == nil && line.Counts[hook.Accepted] == 2 &&
			line.Counts[hook.Replayed] == 1 && line.Refused() == 1 && len(line.Owed) == 0
	})
	if r := line.Figures.Refused; r == nil || r.Result != hook.Forged || line.Kind != "propelauth" {
		t.Errorf("%+v", line)
	}
	want(t, env, exitDone, "forged: the signature is not made with", "sources", "list")
	is(t, diagnosis(t, env, exitDone)["sources"], admin.Warning, "propel: 1 message was not taken")
	want(t, env[:len(env)-2], exitUsage, "docs/sources.md", "sources", "list")
}
