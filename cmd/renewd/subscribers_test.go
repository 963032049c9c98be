package main

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/admin"
)

func TestSubscribers(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	env := []string{
		"RENEWD_NATS_URL=" + url, "RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c",
	}
	want(t, env, exitFailed, "streams apply", "subscribers", "list")
	want(t, env, exitFailed, "streams apply", "subscribers", "add", "shop")
	want(t, env, exitDone, "", "streams", "apply")
	want(t, env, exitDone, "no durable is there", "subscribers", "list")
	want(t, env, exitUsage, "no such outcome", "subscribers", "add", "shop", "--type",
		"user.reauth")
	want(t, env, exitFailed, "want one of them", "subscribers", "add", "shop", "--all", "--from",
		"3")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop", "--type",
		"user.reauth_required")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop", "--type",
		"user.reauth_required")
	want(t, env, exitFailed, "for other events", "subscribers", "add", "shop")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop", "--update-filter")
	want(t, env, exitDone, "removed", "subscribers", "remove", "shop")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop")

	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request("user.reauth_required.acme.u1", nil, dialLimit); err != nil {
		t.Fatal(err)
	}
	var s admin.Subscriber
	err = json.Unmarshal([]byte(want(t, env, exitDone, "", "subscribers", "list", "-o", "json")),
		&s)
	if err != nil {
		t.Fatal(err)
	}
	if s.Name != "shop" || s.Waiting != 1 || s.Connected || len(s.Outcomes) != 0 {
		t.Errorf("got %+v", s)
	}
	want(t, env, exitDone, "all       1", "subscribers", "list")
	want(t, env, exitFailed, "subscribers list", "subscribers", "remove", "crm")
	want(t, env, exitDone, "subscribers add shop --from ", "subscribers", "remove", "shop")
	want(t, env, exitDone, "no durable is there", "subscribers", "list")
	want(t, env, exitDone, "shop is there", "subscribers", "add", "shop", "--from", "1")
}

// A durable stays inside of what its name may read, and list and doctor name those that do not.
func TestSubscribersReadWhatTheyMay(t *testing.T) {
	t.Parallel()
	url := natsServer(t)
	with := func(senders string) []string {
		providers := "providers:\n"
		for _, id := range []string{"acme", "globex"} {
			providers += "  - {id: " + id + ", auth_url: \"https://127.0.0.1:1\", client_id: c1}\n"
		}
		return []string{
			"RENEWD_NATS_URL=" + url, "RENEWD_CONFIG=" + write(t, "renewd.yaml", providers+senders),
		}
	}
	open := with("")
	limited := with("senders:\n  shop: {read: [acme]}\n" +
		"  audit: {read: [\"*\"]}\n  idle: {ask: [acme]}\n")
	want(t, open, exitDone, "", "streams", "apply")
	want(t, open, exitDone, "old is there", "subscribers", "add", "old")

	want(t, limited, exitUsage, "senders.shop.read names acme, and not globex", "subscribers",
		"add", "shop", "--provider", "globex")
	want(t, limited, exitUsage, "senders.idle.read names no provider", "subscribers", "add", "idle")
	want(t, limited, exitDone, "the providers acme", "subscribers", "add", "shop")
	want(t, limited, exitDone, "audit is there", "subscribers", "add", "audit", "--all")
	listed := want(t, limited, exitDone, "", "subscribers", "list", "-o", "json")
	for line := range strings.Lines(listed) {
		var s admin.Subscriber
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		if s.Exceeds != (s.Name == "old") ||
			s.Name == "shop" && !slices.Equal(s.Outcomes, []string{"*.*.acme", "*.*.acme.*"}) {
			t.Errorf("listed %+v", s)
		}
	}
	want(t, limited, exitDone, "more than senders.old.read allows", "subscribers", "list")
	is(t, diagnosis(t, append(limited, "RENEWD_DATA_DIR="+t.TempDir()), exitFailed)["subscribers"],
		admin.Warning, "is read by old")

	printed := want(t, limited, exitDone, "", "nats", "config", "--publisher", "idle",
		"--subscriber", "shop=user.synced,operator.acted", "--subscriber", "audit")
	for subject, there := range map[string]bool{
		`{ stream: "user.synced.acme.*", accounts: [SHOP] }`: true,
		`{ stream: "user.synced.*.*", accounts: [AUDIT] }`:   true,
		`{ stream: "operator.acted", accounts: [AUDIT] }`:    true,
		`{ stream: "user.synced.*.*", accounts: [SHOP`:       false,
	} {
		if strings.Contains(printed, subject) != there {
			t.Errorf("%s: printed %t", subject, !there)
		}
	}
	want(t, limited, exitUsage, "senders.idle.read", "nats", "config", "--subscriber", "idle")
}

// What is shipped under deploy is what the command prints.
func TestShippedNATSConfigIsTheOnePrinted(t *testing.T) {
	for file, services := range map[string][]string{
		"deploy/nats/nats.conf":        {"--publisher", "signin", "--subscriber", "shop"},
		"deploy/compose/accounts.conf": {"--publisher", "demo", "--subscriber", "demo"},
	} {
		shipped, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		args := append([]string{"nats", "config"}, services...)
		if got := want(t, nil, exitDone, "", args...); got != string(shipped) {
			t.Errorf("%s is not what `renewd %s` prints: write that into it",
				file, strings.Join(args, " "))
		}
	}
}

func TestNATSConfigNamesWhatIsWrong(t *testing.T) {
	for says, args := range map[string][]string{
		"--publisher, --subscriber and --reader": {},
		"none of renewd, operator, sys":          {"--publisher", "renewd"},
		"sys":                                    {"--subscriber", "operator"},
		"a-z":                                    {"--subscriber", "Shop!"},
		"no such outcome":                        {"--subscriber", "shop=user.login"},
	} {
		want(t, nil, exitUsage, says, append([]string{"nats", "config"}, args...)...)
	}
	narrow := want(t, []string{"RENEWD_NATS_PREFIX=eu"}, exitDone, "", "nats", "config",
		"--publisher", "app", "--subscriber", "app=user.reauth_required")
	for _, line := range []string{
		`{ service: "eu.from.app.user.login.>", accounts: [APP] }`,
		`{ service: { account: RENEWD, subject: "eu.from.app.user.refresh_due.>" }, ` +
			`to: "eu.user.refresh_due.>" }`,
		`{ stream: "eu.user.reauth_required.*.*", accounts: [APP] }`,
		`{ service: "$JS.ACK.eu_OUTCOMES.app.>", accounts: [APP] }`,
		`"$JS.API.STREAM.INFO.KV_eu_renewd_grants"`,
	} {
		if !strings.Contains(narrow, line) {
			t.Errorf("want %s in:\n%s", line, narrow)
		}
	}
	script := want(t, []string{"RENEWD_NATS_PREFIX=eu"}, exitDone, "", "nats", "config", "--nsc",
		"--publisher", "app", "--subscriber", "app=user.reauth_required")
	for _, line := range []string{
		`nsc add export --account RENEWD --name 'eu.from.app.user.login.>' ` +
			`--subject 'eu.from.app.user.login.>' --private --service`,
		`--token "$tokens/import" --local-subject 'eu.user.refresh_due.>'`,
		`--private --service --response-type Stream`,
		`--allow-pub '$JS.API.STREAM.INFO.KV_eu_renewd_grants'`,
	} {
		if !strings.Contains(script, line) {
			t.Errorf("want %s in:\n%s", line, script)
		}
	}
	if strings.Contains(narrow, "user.synced.*.*\", accounts") {
		t.Error("user.synced is open to a service that did not ask for it")
	}
}
