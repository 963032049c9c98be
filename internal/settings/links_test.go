package settings

import (
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/secret"
)

func TestNATSInClear(t *testing.T) {
	for servers, want := range map[string]string{
		"":                                    "",
		"nats://127.0.0.1:4222":               "",
		"localhost:4222":                      "",
		"nats://[::1]:4222":                   "",
		"tls://nats:4222, wss://nats2":        "",
		"nats://nats:4222":                    "nats:4222",
		"nats":                                "nats",
		"tls://nats:4222,ws://nats2:80":       "nats2:80",
		"nats://127.0.0.1,nats://192.0.2.1:1": "192.0.2.1:1",
	} {
		if got := NATSInClear(servers, true, false); got != want {
			t.Errorf("%q: got %q, want %q", servers, got, want)
		}
		if got := NATSInClear(servers, false, false); got != "" {
			t.Errorf("%q without a secret: got %q", servers, got)
		}
	}
	if got := NATSInClear("nats://jo:hunter2@nats:4222", false, false); got != "nats:4222" {
		t.Errorf("with a password in the address: got %q", got)
	}
	if got := NATSInClear("nats://nats:4222", true, true); got != "" {
		t.Errorf("with TLS by the settings: got %q", got)
	}
	if got := NATSInClear("ws://nats:80", true, true); got != "nats:80" {
		t.Errorf("a plain websocket: got %q", got)
	}
}

func TestDatabaseInClear(t *testing.T) {
	t.Setenv("PGSSLMODE", "")
	t.Setenv("PGPASSWORD", "")
	for address, want := range map[string]string{
		"":                                  "",
		"postgres://renewd@db/renewd":       "", // no password
		"postgres://renewd:pw@127.0.0.1/db": "",
		"postgres://renewd:pw@db/db":        "db", // prefer: falls back
		"postgres://renewd:pw@db/db?sslmode=disable":                 "db",
		"postgres://renewd:pw@db/db?sslmode=allow":                   "db",
		"postgres://renewd:pw@db/db?sslmode=require":                 "",
		"postgres://renewd:pw@db/db?sslmode=verify-full":             "",
		"postgres://renewd:pw@localhost,db/db?sslmode=disable":       "db",
		"host=/var/run/postgresql user=renewd password=pw dbname=db": "",
	} {
		if got := DatabaseInClear(address); got != want {
			t.Errorf("%q: got %q, want %q", address, got, want)
		}
	}
}

func TestSettingsRefuseSecretsInClear(t *testing.T) {
	t.Parallel()
	base := []string{"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c"}
	for setting, env := range map[string][]string{
		"RENEWD_NATS_URL": {
			"RENEWD_NATS_URL=nats://nats:4222",
			"RENEWD_NATS_USER=renewd",
			"RENEWD_NATS_PASSWORD=hunter2",
		},
		"RENEWD_NATS_LISTEN": {
			"RENEWD_NATS_LISTEN=0.0.0.0:4222", "RENEWD_NATS_TOKEN=hunter2hunter2hunter2",
		},
		"RENEWD_DATABASE_URL": {"RENEWD_DATABASE_URL=postgres://renewd:hunter2@db/renewd"},
		"RENEWD_HTTP_ADDR": {
			"RENEWD_HTTP_ADDR=0.0.0.0:7460", "RENEWD_HTTP_TOKEN=hunter2hunter2hunter2",
		},
	} {
		all := append(base, env...)
		_, err := Load("", all)
		if err == nil || !strings.Contains(err.Error(), setting) ||
			!strings.Contains(err.Error(), "RENEWD_ALLOW_PLAINTEXT") ||
			strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", setting, err)
		}
		if _, err := Load("", append(all, "RENEWD_ALLOW_PLAINTEXT=true")); err != nil {
			t.Errorf("%s allowed: %v", setting, err)
		}
	}
}

// A client's secret, and the access tokens that it may read, are as secret as the token of the HTTP
// server.
func TestSettingsRefuseClientsInClear(t *testing.T) {
	c := &Settings{
		HTTPAddr:    "0.0.0.0:7460",
		HTTPClients: map[string]HTTPClient{"shop": {}},
	}
	if why := c.LinksInClear()["http_addr"]; !strings.Contains(why, "http_clients") {
		t.Errorf("beyond loopback: %q", why)
	}
	c.HTTPCert = "cert.pem"
	if why, found := c.LinksInClear()["http_addr"]; found {
		t.Errorf("with TLS: %q", why)
	}
	c.HTTPCert, c.HTTPClients = "", nil
	c.Sources = map[string]Source{"risc": {Kind: "set", Secret: secret.New("hunter2")}}
	if why := c.LinksInClear()["http_addr"]; !strings.Contains(why, "sources.risc") {
		t.Errorf("a source's bearer token: %q", why)
	}
	c.HTTPAddr = "127.0.0.1:7460"
	if why, found := c.LinksInClear()["http_addr"]; found {
		t.Errorf("on loopback: %q", why)
	}
}
