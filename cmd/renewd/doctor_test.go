package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/stream"
)

// diagnosis runs the doctor and returns its findings by name.
func diagnosis(t *testing.T, env []string, code int, args ...string) map[string]finding {
	t.Helper()
	var out, errs bytes.Buffer
	got := run(t.Context(), append([]string{"renewd", "doctor", "-o", "json"}, args...), env, strings.NewReader(""), &out, &errs)
	var all []finding
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	found := map[string]finding{}
	for _, f := range all {
		found[f.Check] = f
		if (f.State == broken || f.State == warning) && f.Advice == "" {
			t.Errorf("%s: %s, and nothing to do about it", f.Check, f.Found)
		}
	}
	if got != code {
		t.Errorf("exit code %d, want %d: %s", got, code, out.String())
	}
	return found
}

func (f finding) is(t *testing.T, s condition, text string) {
	t.Helper()
	if f.State != s || !strings.Contains(f.Found+f.Advice, text) {
		t.Errorf("%s: %s: %s: %s; want %s and %q", f.Check, f.State, f.Found, f.Advice, s, text)
	}
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_FLOOR=1s",
	}
	diagnosis(t, env, exitFailed)["keyring"].is(t, broken, "restore it from its backup")
	want(t, env, exitDone, "", "keys", "new")
	bare := diagnosis(t, env, exitFailed)
	bare["streams"].is(t, broken, "streams apply")
	bare["store"].is(t, broken, "")
	want(t, env, exitDone, "", "streams", "apply")
	diagnosis(t, env, exitFailed)["public key"].is(t, broken, "start renewd")

	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file", tokens, "--wait")
	well := diagnosis(t, env, exitDone)
	for _, f := range well {
		if !strings.HasPrefix(f.Check, "provider") && f.State != fine {
			t.Errorf("all is well, and %s is %s: %s", f.Check, f.State, f.Found)
		}
	}
	well["provider propelauth"].is(t, warning, "nobody was renewed with these settings yet")
	want(t, env, exitDone, "1 live", "doctor")

	js := client(t, url)
	ctx := t.Context()
	renewals, err := js.Stream(ctx, stream.Renewals)
	if err == nil {
		err = renewals.Purge(ctx)
	}
	if err == nil {
		_, err = js.PauseConsumer(ctx, stream.Renewals, stream.ConsumerRenew("propelauth"), time.Now().Add(time.Hour))
	}
	if err == nil {
		_, err = js.Publish(ctx, "parked.propelauth.jane", []byte("sealed"))
	}
	if err != nil {
		t.Fatal(err)
	}
	ill := diagnosis(t, env, exitFailed)
	ill["grants"].is(t, broken, "1 of 1 live ones have no timer")
	ill["queues"].is(t, warning, "paused")
	ill["parked pairs"].is(t, warning, "1 pair waits")
}

// A queue that no worker empties is the first thing that an operator must hear of.
func TestDoctorNoticesThatNothingRuns(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "", "keys", "publish")
	diagnosis(t, env, exitDone)["workers"].is(t, warning, "none was heard of")
	want(t, env, exitDone, "stored", "publish", "refresh-due", "--user", "jane")
	diagnosis(t, env, exitFailed)["workers"].is(t, broken, "1 message waits")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	diagnosis(t, env, exitDone)["workers"].is(t, fine, "1 runs")
}

// What is known of a provider is told with what to do, also where it can not be read.
func TestDoctorReadsTheProvidersRecord(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	bucket, err := client(t, url).KeyValue(t.Context(), stream.BucketProviders)
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []struct {
		record string
		state  condition
		says   string
	}{
		{`{"v":1,"outage":{"reason":"provider_throttled","since":"2026-03-01T12:00:00Z","until":"2026-03-01T12:00:09Z"}}`, warning, "set rate"},
		{`{"v":1,"doubt":{"since":"2026-03-01T12:00:00Z"}}`, warning, "the others are renewed"},
		{`{"v":1,"doubt":{"since":"2026-03-01T12:00:00Z","until":"2026-03-01T12:00:09Z"}}`, warning, "nobody is renewed, next try"},
		{`{"v":99}`, broken, "nats kv del renewd_providers propelauth"},
	} {
		if _, err := bucket.PutString(t.Context(), "propelauth", known.record); err != nil {
			t.Fatal(err)
		}
		diagnosis(t, env, exitFailed)["provider propelauth"].is(t, known.state, known.says)
	}
}

func TestDoctorOfWhatIsDown(t *testing.T) {
	t.Parallel()
	env := []string{
		"RENEWD_NATS_URL=nats://127.0.0.1:1", "RENEWD_DATABASE_URL=postgres://renewd@127.0.0.1:1/x", "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=x", "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	down := diagnosis(t, env, exitFailed)
	down["keyring"].is(t, fine, "")
	down["NATS"].is(t, broken, "RENEWD_NATS_URL")
	down["streams"].is(t, skipped, "")
	down["store"].is(t, broken, "RENEWD_DATABASE_URL")
	down["provider propelauth"].is(t, broken, "auth_url")
}

func TestDoctorFindsAnotherKeyring(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url, dir := natsServer(t), t.TempDir()
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dir, "RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file", tokens, "--wait")
	other := append(env, "RENEWD_KEYS_FILE="+t.TempDir()+"/keys.json")
	want(t, other, exitDone, "", "keys", "new")
	found := diagnosis(t, other, exitFailed)
	found["public key"].is(t, broken, "another keyring's")
	found["grants"].is(t, broken, "1 cannot be opened")

	// The file that was just promoted is not at the workers yet.
	ring, err := (keyFile{path: filepath.Join(dir, "keys.json")}).load(t.Context())
	if err == nil {
		ring, err = ring.Rotate(time.Now())
	}
	if err == nil {
		ring, err = ring.Promote()
	}
	if err == nil {
		err = keyFile{path: filepath.Join(dir, "promoted.json")}.write(t.Context(), ring)
	}
	if err != nil {
		t.Fatal(err)
	}
	found = diagnosis(t, append(env, "RENEWD_KEYS_FILE="+filepath.Join(dir, "promoted.json")), exitDone)
	found["public key"].is(t, fine, "once they read it")
}

func client(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestDoctorWarnsOfAKeyringBesideWhatItProtects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{"RENEWD_DATA_DIR=" + dir, "RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=c", "RENEWD_ALLOW_HTTP_LOOPBACK=true"}
	want(t, env, exitDone, "", "keys", "new")
	diagnosis(t, env, exitFailed, "--server", "nats://127.0.0.1:1")["keyring"].is(t, warning, "RENEWD_KEYS_FILE")
	elsewhere := append(env, "RENEWD_KEYS_FILE="+t.TempDir()+"/keys.json")
	want(t, elsewhere, exitDone, "", "keys", "new")
	diagnosis(t, elsewhere, exitFailed, "--server", "nats://127.0.0.1:1")["keyring"].is(t, fine, "")
}

// Streams of before there were limits are used as they are, which is told; an operator applies the
// limits. A stream that fills up is told too, with who would miss what goes first.
func TestDoctorLooksAtTheRoom(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_AUTH_URL=https://auth.example.com", "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_OUTCOME_BYTES=1MiB",
	}
	before := append(slices.Clone(env), "RENEWD_OUTCOME_BYTES=none", "RENEWD_COMMAND_BYTES=none")
	want(t, env, exitDone, "", "keys", "new")
	want(t, before, exitDone, "", "streams", "apply")
	start(t, append(slices.Clone(env), "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	diagnosis(t, env, exitFailed)["streams"].is(t, warning, "OUTCOMES without the limits of the settings")
	want(t, env, exitDone, "max_bytes: -1 -> 1048576", "streams", "apply")
	well := diagnosis(t, env, exitFailed) // the provider does not answer
	well["streams"].is(t, fine, "")
	well["room"].is(t, fine, "OUTCOMES 0 % of 1MiB")

	want(t, env, exitDone, "", "subscribers", "add", "shop")
	js := client(t, url)
	for range 13 {
		if _, err := js.Publish(t.Context(), "user.synced.propelauth.u1", make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
	ill := diagnosis(t, env, exitFailed)["room"]
	ill.is(t, warning, "subscriber shop has 13 of them to read")
	ill.is(t, warning, "raise outcome_bytes")
}
