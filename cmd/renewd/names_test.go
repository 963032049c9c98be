package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
)

// Where user_ids is hashed, the id of a user who signs in, fails, is refused and erased is in no
// log line and in no span. What `user hash` prints stands there instead. The exporter reads its
// endpoint from the process's own environment, so this test cannot run beside others.
func TestHashedIDsAreInNoLogAndNoSpan(t *testing.T) {
	var mu sync.Mutex
	var spans strings.Builder
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		spans.Write(body)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector.URL+"/v1/traces")
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_FLOOR=1s", "RENEWD_HTTP_ADDR=127.0.0.1:0",
		"RENEWD_USER_IDS=hashed", "RENEWD_LOG_LEVEL=debug",
		"RENEWD_POLICY_CONFIRM_MIN=1s", "RENEWD_POLICY_CONFIRM_MAX=1s",
		"RENEWD_POLICY_RETRY_MIN=100ms", "RENEWD_POLICY_RETRY_MAX=100ms",
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=" + collector.URL + "/v1/traces",
		"OTEL_METRICS_EXPORTER=none",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var log terminal
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"renewd", "serve"}, env, strings.NewReader(""), &log, &log)
	}()
	log.until(t, "renewd is up", 1)

	const user = "mallory@example.org"
	tokens := write(t, "user.json", standIn.login(t, user))
	want(
		t,
		env,
		exitDone,
		"user.synced",
		"publish",
		"login",
		"--user",
		user,
		"--tokens-file",
		tokens,
		"--wait",
	)
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, m := range [][2]string{
		{"user.login.propelauth.mallory=40example=2Eorg", `{"tokens":"no.jwe.at.all.here"}`},
		{"user.login.propelauth.mallory@example.org", "{}"},
		{"user.login.mallory@example.org", "{}"},
		{"user.refresh_due.propelauth.mallory=40example=2Eorg", `{"want":"everything"}`},
		{"user.refresh_due.nosuch.mallory=40example=2Eorg", "{}"},
	} {
		if _, err := nc.Request(m[0], []byte(m[1]), dialLimit); err != nil {
			t.Fatal(err)
		}
	}
	// No refresh token, and an access token that the provider refuses; then the session ends.
	want(
		t,
		env,
		exitFailed,
		"user.refresh_failed",
		"publish",
		"login",
		"--user",
		user,
		"--tokens-file",
		write(t, "short.json", `{"access_token":"of nobody","expires_in":1800}`),
		"--wait",
	)
	standIn.end(t, user)
	want(
		t,
		env,
		exitFailed,
		"user.",
		"publish",
		"refresh-due",
		"--user",
		user,
		"--want",
		"tokens",
		"--wait",
	)
	hash := strings.TrimSpace(want(t, env, exitDone, "u_", "user", "hash", user))
	want(t, env, exitDone, "erased", "user", "forget", user, "--yes")
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("exit code %d", code)
	}

	mu.Lock()
	defer mu.Unlock()
	for where, text := range map[string]string{
		"the log":   log.String(),
		"the spans": spans.String(),
	} {
		for line := range strings.Lines(text) {
			if i := strings.Index(line, "mallory"); i >= 0 {
				t.Errorf("the id is in %s: …%q…", where, line[max(0, i-100):min(len(line), i+100)])
			}
		}
		if n := strings.Count(text, hash); n < 2 {
			t.Errorf("%s is in %s %d times", hash, where, n)
		}
	}
	again := strings.TrimSpace(want(t, slices.Clone(env), exitDone, "", "user", "hash", user))
	if again != hash {
		t.Errorf("the hash is %s, and then %s", hash, again)
	}
}
