package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/pgtest"
)

// rehearsal runs what docker-compose.yml says without containers: the same commands with the same
// settings, but for addresses and folders.
type rehearsal struct {
	compose compose
	moved   *strings.Replacer
}

// Somebody's first `docker compose up` must show users being renewed.
func TestComposeRehearsal(t *testing.T) {
	r, natsURL := rehearse(t)
	for range 2 { // the second `up` finds the keyring
		if err := r.command(t, "keys").Run(); err != nil {
			t.Fatalf("keys: %v", err)
		}
	}
	if nc, err := nats.Connect(natsURL); err == nil {
		nc.Close()
		t.Error("the NATS server lets in who has no password")
	}
	password := strings.TrimSpace(readFile(t, r.compose.Secrets["nats_demo_password"].File))
	nc := must(nats.Connect(natsURL, nats.UserInfo("demo", password)))(t)
	defer nc.Close()
	events := must(nc.SubscribeSync("user.>"))(t)
	for _, name := range []string{"renewd", "durable", "provider"} {
		if name == "durable" {
			if err := r.command(t, name).Run(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			continue
		}
		p := start(t, r.command(t, name))
		eventually(t, startTimeout, func() error {
			if err := p.running(); err != nil {
				return err
			}
			return r.healthcheck(t, name)
		})
		defer p.stop(t)
	}
	seen := map[string]bool{}
	for len(seen) < 25 {
		m := must(events.NextMsg(30 * time.Second))(t)
		if !strings.HasPrefix(m.Subject, "user.synced.propelauth.") {
			continue
		}
		if seen[m.Subject] = true; !strings.Contains(string(m.Data), `"sender":"demo"`) && strings.Contains(string(m.Data), `"type":"user.login"`) {
			t.Errorf("%s does not name the login's sender", m.Subject)
		}
	}
	if err := nc.Publish("user.refresh_due.propelauth.user-01", nil); err != nil {
		t.Fatal(err)
	}
	for {
		m := must(events.NextMsg(30 * time.Second))(t)
		if m.Subject == "user.synced.propelauth.user-01" && strings.Contains(string(m.Data), `"type":"user.refresh_due"`) {
			break
		}
	}
}

// rehearse starts what the other services stand on: NATS with the demo's own settings, and
// PostgreSQL.
func rehearse(t *testing.T) (r rehearsal, natsURL string) {
	t.Helper()
	c := readCompose(t)
	secrets := must(filepath.Abs(filepath.Join(root, "deploy/compose")))(t)
	ns := rehearseNATS(t, c, secrets)
	database := filepath.Join(t.TempDir(), "database_url")
	if err := os.WriteFile(database, []byte(startPostgres(t).URL("postgres")), 0o600); err != nil {
		t.Fatal(err)
	}
	return rehearsal{c, strings.NewReplacer(
		"/run/secrets/database_url", database, "/run/secrets", secrets, "/data", t.TempDir(), "$$", "$",
		"nats://nats:4222", ns.url, "0.0.0.0:7460", freePort(t), "127.0.0.1:7470", freePort(t),
	)}, ns.url
}

// rehearseNATS runs the command of the service nats with the settings that are mounted there.
func rehearseNATS(t *testing.T, c compose, secrets string) natsAccounts {
	t.Helper()
	etc, ports := t.TempDir(), t.TempDir()
	moved := strings.NewReplacer(`"/data"`, fmt.Sprintf("%q", t.TempDir()), "127.0.0.1:8222", freePort(t))
	for _, name := range []string{"nats.conf", "accounts.conf"} {
		text := moved.Replace(readFile(t, "deploy/compose/"+name))
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := slices.Concat(c.Services["nats"].Entrypoint, c.Services["nats"].Command)
	here := strings.NewReplacer(
		"$$", "$", "/run/secrets", secrets, "/etc/nats/nats.conf", filepath.Join(etc, "nats.conf")+" "+strings.Join(onFreePort(ports), " "),
	)
	for i := range args {
		args[i] = here.Replace(args[i])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(must(natsServer())(t))+":"+os.Getenv("PATH"))
	return startNATS(t, cmd, ports)
}

// settings are a service's, over those of the image.
func (r rehearsal) settings(t *testing.T, name string) (environ []string) {
	t.Helper()
	all := map[string]string{}
	for _, kv := range regexp.MustCompile(`(RENEWD_\w+)=(\S+)`).FindAllStringSubmatch(readFile(t, "Dockerfile"), -1) {
		all[kv[1]] = kv[2]
	}
	maps.Copy(all, r.compose.Services[name].Environment)
	for key, value := range all {
		environ = append(environ, key+"="+r.moved.Replace(value))
	}
	return environ
}

func (r rehearsal) command(t *testing.T, name string) *exec.Cmd {
	t.Helper()
	args := slices.Clone(r.compose.Services[name].Command)
	for i := range args {
		args[i] = r.moved.Replace(args[i])
	}
	return command(t, r.settings(t, name), args...)
}

// healthcheck runs the image's health check as the service's container does.
func (r rehearsal) healthcheck(t *testing.T, name string) error {
	t.Helper()
	cmd := command(t, r.settings(t, name), "healthcheck")
	cmd.Stdout, cmd.Stderr = nil, nil // it fails until the service is up
	return cmd.Run()
}

// startPostgres starts a server that keeps what it acknowledges, as production does.
func startPostgres(t *testing.T) *pgtest.Server {
	t.Helper()
	db, err := pgtest.Start(pgtest.Options{Durable: true})
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Remove)
	return db
}
