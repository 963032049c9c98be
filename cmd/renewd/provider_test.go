package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestProviderPauseAndResume(t *testing.T) {
	t.Parallel()
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=c",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitFailed, "streams apply", "provider", "list")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "untried", "provider", "list")
	want(t, env, exitDone, "not paused", "provider", "resume", "--by", "jo")

	want(t, env, exitDone, "left alone until", "provider", "pause", "--by", "jo", "--note",
		"they migrate", "--for", "2h")
	want(t, env, exitDone, "paused", "provider", "list")
	want(t, env, exitDone, "they migrate", "provider", "show")
	var s standing
	out := want(t, env, exitDone, "", "provider", "list", "-o", "json")
	err := json.Unmarshal([]byte(out), &s)
	if err != nil || s.By != "jo" || s.State != "paused" || s.Until.Sub(s.Since) != 2*time.Hour {
		t.Errorf("got %s, %v", out, err)
	}
	var shown shownProvider
	out = want(t, env, exitDone, "", "provider", "show", "propelauth", "-o", "json")
	err = json.Unmarshal([]byte(out), &shown)
	if err != nil || shown.Note != "they migrate" || !strings.Contains(shown.Hint, "resume") {
		t.Errorf("got %s, %v", out, err)
	}
	want(t, env, exitDone, "tried again at once", "provider", "resume", "propelauth", "--by", "kim")
	want(t, env, exitDone, "untried", "provider", "list")
	want(t, append(env, "RENEWD_BY=kim"), exitDone, "", "provider", "pause", "propelauth")
	want(t, env, exitDone, "kim", "provider", "list")

	for says, args := range map[string][]string{
		"--for":              {"pause", "--by", "jo", "--for", "soon"},
		"is not in the sett": {"pause", "nobody", "--by", "jo"},
		"one line":           {"pause", "--by", "jo\n"},
		"--note":             {"pause", "--by", "jo", "--note", strings.Repeat("x", 300)},
	} {
		want(t, env, exitUsage, says, append([]string{"provider"}, args...)...)
	}
}
