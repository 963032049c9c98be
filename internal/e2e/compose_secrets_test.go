package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/renewd/renewd/internal/testkit"
)

// composeSecrets runs the script that a person runs before the first `docker compose up`, in a
// repository that has nothing else. It returns the folder with what the script made.
func composeSecrets(t *testing.T) string {
	t.Helper()
	home := filepath.Join(t.TempDir(), "deploy", "compose")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(root, "deploy/compose/setup.sh"), filepath.Join(home, "setup.sh"))
	setUp(t, home)
	return filepath.Join(home, "secrets")
}

func setUp(t *testing.T, home string, args ...string) {
	t.Helper()
	testkit.Program(t, "openssl")
	cmd := exec.Command("bash", append([]string{filepath.Join(home, "setup.sh")}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("setup.sh: %v\n%s", err, out)
	}
}

// readSecrets returns the files of the folder by name, without white space around their contents.
func readSecrets(t *testing.T, folder string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, e := range must(os.ReadDir(folder))(t) {
		data := must(os.ReadFile(filepath.Join(folder, e.Name())))(t)
		all[e.Name()] = strings.TrimSpace(string(data))
	}
	return all
}

// Nothing starts before the script ran, and the containers want exactly what the script makes.
func TestComposeSecretsAreMade(t *testing.T) {
	t.Parallel()
	folder := composeSecrets(t)
	made := readSecrets(t, folder)
	c := readCompose(t)
	for name, s := range c.Secrets {
		if want := "${SECRETS:?run deploy/compose/setup.sh first}/" + name; s.File != want {
			t.Errorf("secret %s is %s, want %s", name, s.File, want)
		}
		if made[name] == "" {
			t.Errorf("setup.sh makes no %s", name)
		}
	}
	for name := range made {
		if c.Secrets[name].File == "" {
			t.Errorf("setup.sh makes %s, which nobody mounts", name)
		}
	}
	if mode := must(os.Stat(folder))(t).Mode().Perm(); mode != 0o700 {
		t.Errorf("the folder has the mode %o: others can read what is in it", mode)
	}
	env := must(os.ReadFile(filepath.Join(folder, "../../../.env")))(t)
	if string(env) != "SECRETS=./deploy/compose/secrets\n" {
		t.Errorf(".env is %q", env)
	}
	ignored := strings.Split(readFile(t, ".gitignore"), "\n")
	for _, name := range []string{"/.env", "/deploy/compose/secrets/"} {
		if !slices.Contains(ignored, name) {
			t.Errorf("git takes %s", name)
		}
	}
}

// A second run changes nothing. With --renew it makes new certificates, but no new password.
func TestComposeSecretsStay(t *testing.T) {
	t.Parallel()
	folder := composeSecrets(t)
	first := readSecrets(t, folder)
	seen := map[string]string{}
	for name, value := range first {
		if other := seen[value]; other != "" {
			t.Errorf("%s and %s are the same", name, other)
		}
		seen[value] = name
		if secret := strings.HasSuffix(name, "_password"); secret && len(value) < 40 {
			t.Errorf("%s is %d bytes long", name, len(value))
		}
	}
	for _, args := range [][]string{nil, {"--renew"}} {
		setUp(t, filepath.Dir(folder), args...)
		for name, value := range readSecrets(t, folder) {
			key, cert := strings.HasSuffix(name, "_key"), strings.HasSuffix(name, "_cert")
			want := args != nil && (key || cert || name == "ca")
			if changed := value != first[name]; changed != want {
				t.Errorf("setup.sh %v changed %s: %t", args, name, changed)
			}
		}
	}
}

// Every server's certificate is for the server's name in the containers' network, and for this
// machine.
func TestComposeCertificates(t *testing.T) {
	t.Parallel()
	made := readSecrets(t, composeSecrets(t))
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(made["ca"])) {
		t.Fatal("ca is no certificate")
	}
	for _, server := range []string{"nats", "postgres", "renewd"} {
		block, _ := pem.Decode([]byte(made[server+"_cert"]))
		cert := must(x509.ParseCertificate(block.Bytes))(t)
		for _, name := range []string{server, "localhost", "127.0.0.1"} {
			if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
				t.Errorf("%s: %v", server, err)
			}
		}
		if cert.IsCA {
			t.Errorf("%s: its certificate can sign others", server)
		}
	}
}

// No password and no profile crosses from one container to another in clear text.
func TestComposeLinksAreUnderTLS(t *testing.T) {
	t.Parallel()
	c, made := readCompose(t), readSecrets(t, composeSecrets(t))
	links := 0
	for name, s := range c.Services {
		env := s.Environment
		if env["RENEWD_ALLOW_PLAINTEXT"] != "" {
			t.Errorf("%s: RENEWD_ALLOW_PLAINTEXT is set", name)
		}
		if at := env["RENEWD_NATS_URL"]; at != "" {
			links++
			if !strings.HasPrefix(at, "tls://") || env["RENEWD_NATS_CA"] != "/run/secrets/ca" {
				t.Errorf("%s: %s, checked by %q", name, at, env["RENEWD_NATS_CA"])
			}
		}
		if file, ok := strings.CutPrefix(env["RENEWD_DATABASE_URL_FILE"], "/run/secrets/"); ok {
			links++
			at := must(url.Parse(made[file]))(t)
			mode, ca := at.Query().Get("sslmode"), at.Query().Get("sslrootcert")
			if mode != "verify-full" || ca != "/run/secrets/ca" ||
				!slices.Contains(s.Secrets, "ca") {
				t.Errorf("%s: sslmode=%s, sslrootcert=%s", name, mode, ca)
			}
			if _, ok := c.Services[at.Hostname()]; !ok {
				t.Errorf("%s: no service %s", file, at.Hostname())
			}
		}
		host, _, err := net.SplitHostPort(env["RENEWD_HTTP_ADDR"])
		if err == nil && host != "127.0.0.1" {
			links++
			if env["RENEWD_HTTP_CERT"] == "" || env["RENEWD_HTTP_KEY"] == "" {
				t.Errorf("%s: plain HTTP on %s", name, host)
			}
		}
	}
	if links < 6 {
		t.Errorf("%d links found", links)
	}
}

// The workers' container may change rows and no tables. Only the container that migrates may do
// more.
func TestComposeDatabaseRoles(t *testing.T) {
	t.Parallel()
	c, made := readCompose(t), readSecrets(t, composeSecrets(t))
	for role, of := range map[string]string{"owner": "migrate", "worker": "renewd"} {
		at := must(url.Parse(made["database_url_"+role]))(t)
		password, _ := at.User.Password()
		if at.User.Username() != "renewd_"+role || password != made["postgres_"+role+"_password"] {
			t.Errorf("database_url_%s is for %s", role, at.User.Username())
		}
		for name, s := range c.Services {
			if has := slices.Contains(s.Secrets, "database_url_"+role); has != (name == of) {
				t.Errorf("%s has database_url_%s: %t", name, role, has)
			}
		}
	}
	for name, s := range c.Services {
		for _, secret := range s.Secrets {
			if strings.HasPrefix(secret, "postgres_") && name != "postgres" {
				t.Errorf("%s has %s", name, secret)
			}
		}
	}
	if c.Services["renewd"].Environment["RENEWD_DATABASE_MIGRATE"] != "false" {
		t.Error("the workers migrate, with a role that may not")
	}
	if _, ok := c.Services["renewd"].DependsOn["migrate"]; !ok {
		t.Error("renewd does not wait for its tables")
	}
	for i, script := range []string{"./deploy/postgres/roles.sql", "./deploy/compose/roles.sh"} {
		at := fmt.Sprintf(":/docker-entrypoint-initdb.d/%d0-roles%s:ro", i+1, filepath.Ext(script))
		if !slices.Contains(c.Services["postgres"].Volumes, script+at) {
			t.Errorf("%s is not run when the database is made", script)
		}
	}
}

// A container has the password of the NATS user that it connects as, and no other. Only the server
// itself may have others.
func TestComposeNATSPasswords(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	for _, user := range []string{"renewd", "operator", "demo"} {
		for name, s := range c.Services {
			has := slices.Contains(s.Secrets, "nats_"+user+"_password")
			is := s.Environment["RENEWD_NATS_USER"]
			if has != (is == user) && name != "nats" {
				t.Errorf("%s has the password of %s: %t, and its user is %q", name, user, has, is)
			}
		}
	}
	if is := c.Services["provider"].Environment["RENEWD_NATS_USER"]; is != "demo" {
		t.Errorf("the app connects as %q, want a user that is not renewd's", is)
	}
}
