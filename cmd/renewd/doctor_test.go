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

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/keyfile"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/topology"
)

// diagnosis runs the doctor and returns its findings by name.
func diagnosis(t *testing.T, env []string, code int, args ...string) map[string]admin.Finding {
	t.Helper()
	var out, errs bytes.Buffer
	got := run(t.Context(), append([]string{"renewd", "doctor", "-o", "json"}, args...), env,
		strings.NewReader(""), &out, &errs)
	var all []admin.Finding
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	found := map[string]admin.Finding{}
	for _, f := range all {
		found[f.Check] = f
		if (f.State == admin.Broken || f.State == admin.Warning) && f.Advice == "" {
			t.Errorf("%s: %s, and nothing to do about it", f.Check, f.Found)
		}
	}
	if got != code {
		t.Errorf("exit code %d, want %d: %s", got, code, out.String())
	}
	return found
}

func is(t *testing.T, f admin.Finding, s admin.Condition, text string) {
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
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_POLICY_FLOOR=1s",
	}
	is(t, diagnosis(t, env, exitFailed)["keyring"], admin.Broken, "restore it from its backup")
	apart := append(env, "RENEWD_LOGIN_KEYS_FILE="+filepath.Join(t.TempDir(), "none.json"))
	is(t, diagnosis(t, apart, exitFailed)["login keys"], admin.Broken,
		"set RENEWD_LOGIN_KEYS_FILE to where it is")
	want(t, env, exitDone, "", "keys", "new")
	bare := diagnosis(t, env, exitFailed)
	is(t, bare["streams"], admin.Broken, "streams apply")
	is(t, bare["store"], admin.Broken, "")
	want(t, env, exitDone, "", "streams", "apply")
	is(t, diagnosis(t, env, exitFailed)["public key"], admin.Broken, "start renewd")

	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		tokens, "--wait")
	well := diagnosis(t, env, exitDone)
	for _, f := range well {
		if !strings.HasPrefix(f.Check, "provider") && f.State != admin.Fine {
			t.Errorf("all is well, and %s is %s: %s", f.Check, f.State, f.Found)
		}
	}
	is(t, well["provider propelauth"], admin.Warning, "no user was renewed with these settings yet")
	want(t, env, exitDone, "1 live", "doctor")

	js := client(t, url)
	ctx := t.Context()
	renewals, err := js.Stream(ctx, topology.Renewals)
	if err == nil {
		err = renewals.Purge(ctx)
	}
	if err == nil {
		_, err = js.PauseConsumer(ctx, topology.Renewals, topology.ConsumerRenew("propelauth"),
			time.Now().Add(time.Hour))
	}
	if err == nil {
		_, err = js.Publish(ctx, "parked.propelauth.jane", []byte("sealed"))
	}
	if err != nil {
		t.Fatal(err)
	}
	ill := diagnosis(t, env, exitFailed)
	is(t, ill["grants"], admin.Broken, "1 of 1 live ones have no timer")
	is(t, ill["queues"], admin.Warning, "paused")
	is(t, ill["parked pairs"], admin.Warning, "1 pair waits")
}

// A queue that no worker empties is the first thing that an operator must hear of.
func TestDoctorNoticesThatNothingRuns(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "", "keys", "publish")
	is(t, diagnosis(t, env, exitDone)["workers"], admin.Warning, "none was heard of")
	want(t, env, exitDone, "stored", "publish", "refresh-due", "--user", "jane")
	is(t, diagnosis(t, env, exitFailed)["workers"], admin.Broken, "1 message waits")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	is(t, diagnosis(t, env, exitDone)["workers"], admin.Fine, "1 runs")
}

// What is known of a provider is told with what to do, also where it can not be read.
func TestDoctorReadsTheProvidersRecord(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	bucket, err := client(t, url).KeyValue(t.Context(), topology.BucketProviders)
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []struct {
		record string
		state  admin.Condition
		says   string
	}{
		{
			`{"v":1,"outage":{"reason":"provider_throttled",` +
				`"since":"2026-03-01T12:00:00Z","until":"2026-03-01T12:00:09Z"}}`,
			admin.Warning,
			"set rate",
		},
		{
			`{"v":1,"doubt":{"since":"2026-03-01T12:00:00Z"}}`,
			admin.Warning,
			"the others are renewed",
		},
		{
			`{"v":1,"doubt":{"since":"2026-03-01T12:00:00Z","until":"2026-03-01T12:00:09Z"}}`,
			admin.Warning,
			"no user is renewed, next try",
		},
		{`{"v":99}`, admin.Broken, "nats kv del renewd_providers propelauth"},
	} {
		if _, err := bucket.PutString(t.Context(), "propelauth", known.record); err != nil {
			t.Fatal(err)
		}
		is(t, diagnosis(t, env, exitFailed)["provider propelauth"], known.state, known.says)
	}
}

func TestDoctorOfWhatIsDown(t *testing.T) {
	t.Parallel()
	env := []string{
		"RENEWD_NATS_URL=nats://127.0.0.1:1", "RENEWD_DATABASE_URL=postgres://renewd@127.0.0.1:1/x",
		"RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=x",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	down := diagnosis(t, env, exitFailed)
	is(t, down["keyring"], admin.Fine, "")
	is(t, down["NATS"], admin.Broken, "RENEWD_NATS_URL")
	is(t, down["streams"], admin.Skipped, "")
	is(t, down["store"], admin.Broken, "RENEWD_DATABASE_URL")
	is(t, down["provider propelauth"], admin.Broken, "auth_url")
}

func TestDoctorFindsAnotherKeyring(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url, dir := natsServer(t), t.TempDir()
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dir,
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		tokens, "--wait")
	other := append(env, "RENEWD_KEYS_FILE="+t.TempDir()+"/keys.json")
	want(t, other, exitDone, "", "keys", "new")
	found := diagnosis(t, other, exitFailed)
	is(t, found["public key"], admin.Broken, "another keyring's")
	is(t, found["grants"], admin.Broken, "1 cannot be opened")

	// The file that was just promoted is not at the workers yet.
	ring, err := (keyfile.File{Path: filepath.Join(dir, "keys.json")}).Load(t.Context())
	if err == nil {
		ring, err = ring.Rotate(time.Now())
	}
	if err == nil {
		ring, err = ring.Promote()
	}
	if err == nil {
		err = keyfile.File{Path: filepath.Join(dir, "promoted.json")}.Write(t.Context(), ring)
	}
	if err != nil {
		t.Fatal(err)
	}
	found = diagnosis(t, append(env, "RENEWD_KEYS_FILE="+filepath.Join(dir, "promoted.json")),
		exitDone)
	is(t, found["public key"], admin.Fine, "once they read it")
}

// Records of a version before are told apart from those that another hand has changed.
func TestDoctorSaysWhichRecordsAreNotBound(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	url, dir := natsServer(t), t.TempDir()
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + dir,
		"RENEWD_AUTH_URL=http://" + standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	strict := append(slices.Clip(env), "RENEWD_REQUIRE_BOUND_RECORDS=true")
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "", "keys", "publish")
	ring, err := (keyfile.File{Path: filepath.Join(dir, "keys.json")}).Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := client(t, url).KeyValue(t.Context(), topology.BucketGrants)
	if err != nil {
		t.Fatal(err)
	}
	put := func(user string, mark bool) {
		t.Helper()
		k := grant.Key{Provider: "propelauth", User: user}
		sealed, err := grant.SealPair(ring, grant.PurposeStore, k, 7, grant.Pair{})
		if err != nil {
			t.Fatal(err)
		}
		record, err := json.Marshal(map[string]any{
			"Bound": mark, "Status": grant.Suspended, "Version": 7, "sealed": sealed,
		})
		if err == nil {
			_, err = bucket.Put(t.Context(), "propelauth."+user, record)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("jane", false)
	is(t, diagnosis(t, env, exitDone)["grants"], admin.Warning,
		"1 are not bound to their sealed tokens")
	is(t, diagnosis(t, strict, exitFailed)["grants"], admin.Broken,
		"set require_bound_records to false")
	put("zoe", true)
	forged := diagnosis(t, env, exitFailed)["grants"]
	is(t, forged, admin.Broken, "1 were changed by another hand than renewd's")
	is(t, forged, admin.Broken, "for instance [propelauth/zoe]")

	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0")) // which binds jane's
	for deadline := time.Now().Add(testkit.Patience); ; <-time.After(100 * time.Millisecond) {
		found := diagnosis(t, strict, exitFailed)["grants"]
		if !strings.Contains(found.Found, "not bound") {
			is(t, found, admin.Broken, "1 were changed by another hand than renewd's")
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not bound: %s", found.Found)
		}
	}
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
	env := []string{
		"RENEWD_DATA_DIR=" + dir, "RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=c",
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
	}
	want(t, env, exitDone, "", "keys", "new")
	is(t, diagnosis(t, env, exitFailed, "--server", "nats://127.0.0.1:1")["keyring"], admin.Warning,
		"RENEWD_KEYS_FILE")
	elsewhere := append(env, "RENEWD_KEYS_FILE="+t.TempDir()+"/keys.json")
	want(t, elsewhere, exitDone, "", "keys", "new")
	is(t, diagnosis(t, elsewhere, exitFailed, "--server", "nats://127.0.0.1:1")["keyring"],
		admin.Fine, "")
}

// Streams of before there were limits are used as they are, which is told; an operator applies the
// limits. A stream that fills up is told too, with who would miss what goes first.
func TestDoctorLooksAtTheRoom(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=https://auth.example.com", "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_OUTCOME_BYTES=1MiB",
	}
	before := append(slices.Clone(env), "RENEWD_OUTCOME_BYTES=none", "RENEWD_COMMAND_BYTES=none")
	want(t, env, exitDone, "", "keys", "new")
	want(t, before, exitDone, "", "streams", "apply")
	start(t, append(slices.Clone(env), "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	is(t, diagnosis(t, env, exitFailed)["streams"], admin.Warning,
		"OUTCOMES without the limits of the settings")
	want(t, env, exitDone, "max_bytes: -1 -> 1048576", "streams", "apply")
	well := diagnosis(t, env, exitFailed) // the provider does not answer
	is(t, well["streams"], admin.Fine, "")
	is(t, well["room"], admin.Fine, "OUTCOMES 0 % of 1MiB")

	want(t, env, exitDone, "", "subscribers", "add", "shop")
	js := client(t, url)
	for range 13 {
		_, err := js.Publish(t.Context(), "user.synced.propelauth.u1", make([]byte, 64<<10))
		if err != nil {
			t.Fatal(err)
		}
	}
	ill := diagnosis(t, env, exitFailed)["room"]
	is(t, ill, admin.Warning, "subscriber shop has 13 of them to read")
	is(t, ill, admin.Warning, "raise outcome_bytes")
}
