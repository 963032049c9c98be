package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/testkit/proc"
	"github.com/renewd/renewd/schema"
)

// A service with the right to read gets a user's token; another account is refused, and sees
// nothing of the answers.
func TestToken(t *testing.T) { // not parallel: the server's file reads the environment
	standIn := startStandIn(t)
	accounts := write(t, "nats.conf", want(t, nil, exitDone, "token.get", "nats", "config",
		"--publisher", "signin", "--reader", "shop", "--subscriber", "crm"))
	listen := proc.FreeAddrFor(t)
	env := append(embedded(t, t.TempDir(), standIn), "RENEWD_NATS_ACCOUNTS="+accounts,
		"RENEWD_NATS_LISTEN="+listen, "RENEWD_HTTP_ADDR=127.0.0.1:0")
	for _, user := range []string{"renewd", "operator", "signin", "shop", "crm"} {
		name := "RENEWD_NATS_" + strings.ToUpper(user) + "_PASSWORD"
		t.Setenv(name, "of-"+user)
		env = append(env, name+"=is-known")
	}
	as := func(user string) []string {
		return append(env, "RENEWD_NATS_USER="+user, "RENEWD_NATS_PASSWORD=of-"+user,
			"RENEWD_NATS_API_PREFIX=$JS.renewd.API")
	}
	start(t, append(env, "RENEWD_NATS_USER=renewd", "RENEWD_NATS_PASSWORD=of-renewd"))

	spies := map[string]*nats.Subscription{}
	for _, user := range []string{"signin", "crm", "shop"} {
		nc, err := nats.Connect("nats://"+listen, nats.UserInfo(user, "of-"+user))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		if spies[user], err = nc.SubscribeSync(">"); err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	tokens := write(t, "tokens.json", standIn.login(t, "jane"))
	want(t, as("shop"), exitFailed, schema.TokenUnknownUser, "token", "jane")
	want(t, as("signin"), exitDone, "", "publish", "login", "--user", "jane", "--tokens-file",
		tokens)
	var got schema.AccessToken
	for end := time.Now().Add(time.Minute); got.AccessToken == "" && time.Now().Before(end); {
		_, out, _ := runIn(t, as("shop"), "token", "jane", "-o", "json")
		_ = json.Unmarshal([]byte(out), &got)
	}
	if got.AccessToken == "" || got.TokenType != "Bearer" || !got.ExpiresAt.After(time.Now()) {
		t.Fatalf("no token: type %q until %v", got.TokenType, got.ExpiresAt)
	}
	out := want(t, as("shop"), exitDone, "", "token", "jane", "--min-valid", "0s")
	if strings.TrimSpace(out) != got.AccessToken {
		t.Error("the token alone is something else")
	}
	for user, spy := range spies {
		m, err := spy.NextMsg(time.Second)
		for ; err == nil; m, err = spy.NextMsg(100 * time.Millisecond) {
			if text := string(m.Data); strings.Contains(text, got.AccessToken) {
				t.Errorf("%s sees the token on %s", user, m.Subject)
			} else if user != "shop" && (strings.Contains(m.Subject, "token") ||
				strings.HasPrefix(text, "ey")) {
				t.Errorf("%s sees an answer on %s", user, m.Subject)
			}
		}
		_ = spy.Unsubscribe()
	}
	for _, user := range []string{"signin", "crm"} {
		want(t, as(user), exitFailed, "--reader", "token", "jane")
	}

	run := []string{"token", "jane", "--", "sh", "-c"}
	check := `test -n "$RENEWD_ACCESS_TOKEN" && echo ran`
	out = want(t, as("shop"), exitDone, "", append(run, check)...)
	if strings.TrimSpace(out) != "ran" {
		t.Errorf("%q", strings.ReplaceAll(out, got.AccessToken, "[token]"))
	}
	want(t, as("shop"), 7, "", append(run, "exit 7")...)
	want(t, as("shop"), exitFailed, schema.TokenUnknownUser, "token", "nobody", "--", "true")
	want(t, as("shop"), exitUsage, "user", "token", "a\tb")
}
