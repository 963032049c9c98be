package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
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
		if got := natsInClear(servers, true, false); got != want {
			t.Errorf("%q: got %q, want %q", servers, got, want)
		}
		if got := natsInClear(servers, false, false); got != "" {
			t.Errorf("%q without a secret: got %q", servers, got)
		}
	}
	if got := natsInClear("nats://jo:hunter2@nats:4222", false, false); got != "nats:4222" {
		t.Errorf("with a password in the address: got %q", got)
	}
	if got := natsInClear("nats://nats:4222", true, true); got != "" {
		t.Errorf("with TLS by the settings: got %q", got)
	}
	if got := natsInClear("ws://nats:80", true, true); got != "nats:80" {
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
		if got := databaseInClear(address); got != want {
			t.Errorf("%q: got %q, want %q", address, got, want)
		}
	}
}

func TestSettingsRefuseSecretsInClear(t *testing.T) {
	t.Parallel()
	base := []string{"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c"}
	for setting, env := range map[string][]string{
		"RENEWD_NATS_URL":     {"RENEWD_NATS_URL=nats://nats:4222", "RENEWD_NATS_USER=renewd", "RENEWD_NATS_PASSWORD=hunter2"},
		"RENEWD_NATS_LISTEN":  {"RENEWD_NATS_LISTEN=0.0.0.0:4222", "RENEWD_NATS_TOKEN=hunter2hunter2hunter2"},
		"RENEWD_DATABASE_URL": {"RENEWD_DATABASE_URL=postgres://renewd:hunter2@db/renewd"},
		"RENEWD_HTTP_ADDR":    {"RENEWD_HTTP_ADDR=0.0.0.0:7460", "RENEWD_HTTP_TOKEN=hunter2hunter2hunter2"},
	} {
		all := append(base, env...)
		_, err := load("", all)
		if err == nil || !strings.Contains(err.Error(), setting) || !strings.Contains(err.Error(), "RENEWD_ALLOW_PLAINTEXT") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", setting, err)
		}
		if _, err := load("", append(all, "RENEWD_ALLOW_PLAINTEXT=true")); err != nil {
			t.Errorf("%s allowed: %v", setting, err)
		}
	}
	want(t, append(base, "RENEWD_NATS_TOKEN=hunter2"), exitUsage, "RENEWD_ALLOW_PLAINTEXT", "replay", "--server", "nats://nats:4222")
	from := write(t, "context.json", `{"url": "nats://127.0.0.1:4222", "user": "jo", "password": "hunter2"}`)
	want(t, append(base, "RENEWD_NATS_CONTEXT="+from), exitUsage, "RENEWD_ALLOW_PLAINTEXT", "replay", "--server", "nats://nats:4222")
}

// selfSigned writes a certificate for this machine, and its key.
func selfSigned(t *testing.T, folder string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "renewd"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// HTTP and the embedded NATS server show the certificate of the settings, also after it changed.
func TestLinksWithTLS(t *testing.T) {
	t.Parallel()
	standIn := startStandIn(t)
	folder := t.TempDir()
	cert, key := selfSigned(t, folder, 1)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	env := []string{
		"RENEWD_DATA_DIR=" + filepath.Join(folder, "data"), "RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient, "RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_NATS_LISTEN=" + at, "RENEWD_NATS_USER=renewd", "RENEWD_NATS_PASSWORD=hunter2", "RENEWD_NATS_CERT=" + cert, "RENEWD_NATS_KEY=" + key,
		"RENEWD_HTTP_ADDR=127.0.0.1:0", "RENEWD_HTTP_CERT=" + cert, "RENEWD_HTTP_KEY=" + key,
	}
	want(t, append(env, "RENEWD_HTTP_KEY="+cert), exitUsage, "no certificate with the key", "serve")
	addr := start(t, env)
	want(t, append(env, "RENEWD_HTTP_ADDR="+addr), exitDone, "nats: ok", "healthcheck")

	if nc, err := nats.Connect("nats://"+at, nats.UserInfo("renewd", "hunter2"), nats.RootCAs(cert)); err != nil {
		t.Error(err)
	} else {
		nc.Close()
	}
	if _, err := nats.Connect("nats://"+at, nats.UserInfo("renewd", "hunter2")); err == nil {
		t.Error("a client that trusts nobody got in")
	}

	selfSigned(t, folder, 2)
	later := time.Now().Add(time.Minute)
	for _, path := range []string{cert, key} {
		if err := os.Chtimes(path, later, later); err != nil {
			t.Fatal(err)
		}
	}
	shown := func() int64 {
		c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := shown(); got != 2 {
		t.Errorf("certificate %d is shown, want the new one", got)
	}
	// Half of a change: the one before serves on.
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got != 2 {
		t.Errorf("certificate %d is shown, want the one before", got)
	}
	plain, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = plain.Write([]byte("GET /metrics HTTP/1.0\r\n\r\n"))
	if answer, _ := io.ReadAll(plain); strings.Contains(string(answer), "200") {
		t.Errorf("plain HTTP was answered: %.80q", answer)
	}
}
