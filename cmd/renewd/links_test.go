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

// selfSigned writes a certificate for this machine, and its key.
func selfSigned(t *testing.T, folder string, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: "renewd"},
		NotAfter:              time.Now().Add(time.Hour),
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:                  true,
		BasicConstraintsValid: true,
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
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der},
		key:  {Type: "PRIVATE KEY", Bytes: secret},
	} {
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
		"RENEWD_DATA_DIR=" + filepath.Join(folder, "data"),
		"RENEWD_AUTH_URL=http://" + standIn.addr, "RENEWD_CLIENT_ID=" + devClient,
		"RENEWD_ALLOW_HTTP_LOOPBACK=true",
		"RENEWD_NATS_LISTEN=" + at, "RENEWD_NATS_USER=renewd", "RENEWD_NATS_PASSWORD=hunter2",
		"RENEWD_NATS_CERT=" + cert, "RENEWD_NATS_KEY=" + key,
		"RENEWD_HTTP_ADDR=127.0.0.1:0", "RENEWD_HTTP_CERT=" + cert, "RENEWD_HTTP_KEY=" + key,
	}
	want(t, append(env, "RENEWD_HTTP_KEY="+cert), exitUsage, "no certificate with the key", "serve")
	addr := start(t, env)
	want(t, append(env, "RENEWD_HTTP_ADDR="+addr), exitDone, "nats: ok", "healthcheck")

	if nc, err := nats.Connect("nats://"+at, nats.UserInfo("renewd", "hunter2"),
		nats.RootCAs(cert)); err != nil {
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

// A password that a flag would send beyond this machine in clear text is refused too.
func TestCommandsRefuseSecretsInClear(t *testing.T) {
	t.Parallel()
	base := []string{"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c"}
	want(t, append(base, "RENEWD_NATS_TOKEN=hunter2"), exitUsage, "RENEWD_ALLOW_PLAINTEXT",
		"replay", "--server", "nats://nats:4222")
	from := write(t, "context.json",
		`{"url": "nats://127.0.0.1:4222", "user": "jo", "password": "hunter2"}`)
	want(t, append(base, "RENEWD_NATS_CONTEXT="+from), exitUsage, "RENEWD_ALLOW_PLAINTEXT",
		"replay", "--server", "nats://nats:4222")
}
