package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/jackc/pgx/v5"
	goredis "github.com/redis/go-redis/v9"

	"github.com/renewd/renewd/internal/admin"
	"github.com/renewd/renewd/internal/testkit"
	"github.com/renewd/renewd/internal/testkit/redistest"
	"github.com/renewd/renewd/internal/testkit/smtptest"
	"github.com/renewd/renewd/schema"
)

// endpoint is a receiver that notes the types of what it gets.
type endpoint struct {
	mu     sync.Mutex
	status int
	types  []schema.Type
}

func (h *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.status != 0 {
		w.WriteHeader(h.status)
		return
	}
	var body struct {
		Type schema.Type `json:"type"`
	}
	if json.NewDecoder(r.Body).Decode(&body) == nil {
		h.types = append(h.types, body.Type)
	}
}

func (h *endpoint) answers(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.status = status
}

func (h *endpoint) got(of schema.Type) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.types {
		if t == of {
			n++
		}
	}
	return n
}

// A login's and a logout's outcomes go to a webhook. The sink is listed, paused, resumed and
// replayed, and who knows of the logout is told.
func TestSinks(t *testing.T) {
	t.Parallel()
	receiver := &endpoint{}
	endpoint := httptest.NewServer(receiver)
	t.Cleanup(endpoint.Close)
	standIn := startStandIn(t)
	url := natsServer(t)
	const secret = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3"
	file := write(t, "renewd.yaml", fmt.Sprintf(`
sinks:
  crm:
    kind: webhook
    url: %s/hooks/in-the-path
    secret: %s
    allow_private: true
    allow_http: true
    types: [user.synced, user.signed_out]
`, endpoint.URL, secret))
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_DATA_DIR=" + t.TempDir(), "RENEWD_AUTH_URL=http://" +
			standIn.addr,
		"RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_CONFIG=" +
			file, "RENEWD_BY=jo",
	}
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitFailed, "streams apply", "sinks", "list")
	want(t, env, exitDone, "OUTCOMES/sink-crm", "streams", "apply")
	want(t, env, exitDone, "idle", "sinks", "list")
	is(t, diagnosis(t, env, exitFailed)["sinks"], admin.Warning, "crm: no renewd runs it")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		tokens, "--wait")
	testkit.Eventually(t, "the login's outcome",
		func() bool { return receiver.got(schema.UserSynced) == 1 })
	want(t, env, exitDone, "no sign-out of propelauth/jane is stored", "sinks", "who-knows", "jane")

	want(t, env, exitDone, "sinks resume crm", "sinks", "pause", "crm", "--note", "moving house")
	want(t, env, exitDone, "user.signed_out", "publish", "logout", "--user", "jane", "--wait")
	want(t, env, exitFailed, "not acknowledged", "sinks", "who-knows", "jane")
	if said := want(t, env, exitDone, "paused", "sinks", "show", "crm"); !strings.Contains(said,
		"moving house") || strings.Contains(said, "in-the-path") || strings.Contains(said, secret) {
		t.Error(said)
	}
	is(t, diagnosis(t, env, exitDone)["sinks"], admin.Warning, "paused by jo")
	want(t, env, exitDone, "goes on", "sinks", "resume", "crm")
	want(t, env, exitDone, "nothing to do", "sinks", "resume", "crm")
	testkit.Eventually(t, "the logout's outcome",
		func() bool { return receiver.got(schema.UserSignedOut) == 1 })
	testkit.Eventually(t, "who knows", func() bool {
		code, out, _ := runIn(t, env, "sinks", "who-knows", "jane", "-o", "json")
		var known admin.Knowledge
		err := json.Unmarshal([]byte(out), &known)
		return code == exitDone && err == nil && known.Type == schema.UserSignedOut &&
			len(known.Who) == 1 &&
			known.Who[0].Name == "crm" && known.Who[0].Knows &&
			time.Since(known.Who[0].At) < time.Minute
	})

	want(t, env, exitDone, "again", "sinks", "replay", "crm", "--since", "1h")
	testkit.Eventually(t, "both again", func() bool {
		return receiver.got(schema.UserSignedOut) == 2 && receiver.got(schema.UserSynced) == 2
	})
	want(t, env, exitDone, "0 dead letters are", "sinks", "retry", "crm", "--user", "jane")
	for _, args := range [][]string{{"show", "crn"}, {"pause", "crn"}, {"retry", "crn"},
		{"replay", "crn", "--since", "1h"}} {
		want(t, env, exitUsage, "there is [crm]", append([]string{"sinks"}, args...)...)
	}
	want(t, env, exitUsage, "--since", "sinks", "replay", "crm", "--since", "soon")
	want(t, env, exitDone, "sinks.pause", "replay", "--type", "operator.acted", "-o", "json")

	receiver.answers(http.StatusGone)
	tokens = write(t, "kim.json", standIn.login(t, "kim"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "kim", "--tokens-file",
		tokens, "--wait")
	testkit.Eventually(t, "it is disabled", func() bool {
		_, out, _ := runIn(t, env, "sinks", "list", "-o", "json")
		var line admin.SinkLine
		return json.Unmarshal([]byte(out), &line) == nil && line.State == "disabled" &&
			line.Name == "crm"
	})
	is(t, diagnosis(t, env, exitDone)["sinks"], admin.Warning, "disabled since")
	want(t, env, exitDone, "sinks.disable", "replay", "--type", "operator.acted", "-o", "json")
}

// An app's own users table has the token that the provider takes, and at the logout it goes.
func TestSQLSink(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	database := databases.URL(t)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	do := func(statement string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	do("CREATE TABLE users (id bigint PRIMARY KEY, propel_id text UNIQUE)")
	do("INSERT INTO users VALUES (1, 'jane'), (2, 'kim')")
	file := write(t, "renewd.yaml", fmt.Sprintf(`
sinks:
  app:
    kind: sql
    database_url: %s
    table: users
    key: propel_id
    write_tokens: true
    columns: {propel_access_token: access_token, must_sign_in: must_sign_in, email: email}
`, database))
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_CONFIG=" + file, "RENEWD_BY=jo",
	}
	want(t, env, exitUsage, "no sink of kind sql", "sinks", "plan", "crm")
	plan := want(t, env, exitDone, "ADD COLUMN", "sinks", "plan", "app")
	do(plan)
	want(t, env, exitDone, "all that the sink needs", "sinks", "plan", "app")
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	tokens := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		tokens, "--wait")
	row := func() (token string, out bool) {
		var stored *string
		var flag *bool
		err := conn.QueryRow(t.Context(),
			"SELECT propel_access_token, must_sign_in FROM users WHERE id = 1").Scan(&stored, &flag)
		if err != nil {
			t.Fatal(err)
		}
		if stored != nil {
			token = *stored
		}
		return token, flag != nil && *flag
	}
	testkit.Eventually(t, "jane's token", func() bool { token, _ := row(); return token != "" })
	// The token is renewed first if it ends soon, which the table has a moment later.
	truth := strings.TrimSpace(want(t, env, exitDone, "", "token", "jane"))
	testkit.Eventually(t, "the token that renewd has", func() bool {
		token, out := row()
		return token == truth && !out
	})
	want(t, env, exitDone, "user.signed_out", "publish", "logout", "--user", "jane", "--wait")
	testkit.Eventually(t, "the end of the session", func() bool {
		token, out := row()
		return token == "" && out
	})
}

// One logout goes to an app's Redis, to the user's mailbox and, as a Security Event Token that the
// printed key verifies, to an endpoint.
func TestRedisMailAndTokenSinks(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	cache, mailbox := redistest.Start(t), smtptest.Start(t, smtptest.StartTLS)
	tokens := make(chan string, 10)
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		tokens <- string(body)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(endpoint.Close)
	roots := write(t, "ca.pem", mailbox.PEM())
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	key := write(t, "set.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
		Bytes: der})))
	file := write(t, "renewd.yaml", fmt.Sprintf(`
sinks:
  cache: {kind: redis, redis_url: %q}
  mail:
    kind: mail
    smtp_url: smtp://%s
    ca_file: %s
    from: app@shop.example
    operator: ops@shop.example
    types: [user.signed_out]
  events:
    kind: webhook
    format: set
    url: %s
    set_issuer: https://renewd.example.com
    set_audience: shop
    set_key_file: %s
    allow_private: true
    allow_http: true
    types: [user.signed_out]
`, cache, mailbox.Addr(), roots, endpoint.URL, key))
	env := []string{
		"RENEWD_NATS_URL=" + natsServer(t), "RENEWD_DATA_DIR=" + t.TempDir(),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true", "RENEWD_CONFIG=" + file, "RENEWD_BY=jo",
	}
	want(t, env, exitUsage, "no webhook of format set", "sinks", "keys", "cache")
	published := want(t, env, exitDone, "ES256", "sinks", "keys", "events")
	want(t, env, exitDone, "", "keys", "new")
	want(t, env, exitDone, "", "streams", "apply")
	start(t, append(env, "RENEWD_HTTP_ADDR=127.0.0.1:0"))
	login := write(t, "jane.json", standIn.login(t, "jane"))
	want(t, env, exitDone, "user.synced", "publish", "login", "--user", "jane", "--tokens-file",
		login, "--wait")
	want(t, env, exitDone, "user.signed_out", "publish", "logout", "--user", "jane", "--wait")

	var keys jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(published), &keys); err != nil {
		t.Fatal(err)
	}
	signed, err := jwt.ParseSigned(testkit.Receive(t, tokens),
		[]jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		Issuer  string            `json:"iss"`
		Subject map[string]string `json:"sub_id"`
	}
	if err := signed.Claims(keys.Keys[0].Key, &claims); err != nil {
		t.Fatal(err)
	}
	if said := claims.Issuer + " " + claims.Subject["iss"] + " " + claims.Subject["sub"]; said !=
		"https://renewd.example.com http://"+standIn.addr+" jane" {
		t.Error(said)
	}

	options, err := goredis.ParseURL(cache)
	if err != nil {
		t.Fatal(err)
	}
	app := goredis.NewClient(options)
	defer app.Close()
	testkit.Eventually(t, "the end of the session in Redis", func() bool {
		hash := app.HGetAll(t.Context(), "renewd:propelauth:jane").Val()
		return hash["live"] == "0" && hash["status"] == "signed_out"
	})
	testkit.Eventually(t, "the mail", func() bool { return len(mailbox.Mails()) == 1 })
	want(t, env, exitDone, "again", "sinks", "replay", "mail", "--since", "1h")
	want(t, env, exitDone, "again", "sinks", "replay", "events", "--since", "1h")
	testkit.Receive(t, tokens)
	testkit.Eventually(t, "nothing queues", func() bool {
		_, out, _ := runIn(t, env, "sinks", "show", "mail", "-o", "json")
		var line admin.SinkLine
		return json.Unmarshal([]byte(out), &line) == nil && line.Queued == 0 && line.State == "live"
	})
	if n := len(mailbox.Mails()); n != 1 {
		t.Errorf("%d mails after a replay, want one", n)
	}
}
