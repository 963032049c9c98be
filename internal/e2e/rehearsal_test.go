package e2e

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
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
	nc := must(nats.Connect(natsURL))(t)
	defer nc.Close()
	synced := must(nc.SubscribeSync("user.synced.propelauth.*"))(t)
	for _, name := range []string{"renewd", "provider"} {
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
		m := must(synced.NextMsg(30 * time.Second))(t)
		seen[m.Subject] = true
	}
}

// rehearse starts what the other services stand on: NATS with the demo's own settings, and
// PostgreSQL.
func rehearse(t *testing.T) (r rehearsal, natsURL string) {
	t.Helper()
	opts := must(server.ProcessConfigFile(filepath.Join(root, "deploy/compose/nats.conf")))(t)
	opts.StoreDir, opts.Host, opts.Port, opts.HTTPPort, opts.NoLog, opts.NoSigs = t.TempDir(), "127.0.0.1", -1, 0, true, true
	ns := must(server.NewServer(opts))(t)
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("the NATS server did not start")
	}
	database := filepath.Join(t.TempDir(), "database_url")
	if err := os.WriteFile(database, []byte(startPostgres(t).URL("postgres")), 0o600); err != nil {
		t.Fatal(err)
	}
	secrets := must(filepath.Abs(filepath.Join(root, "deploy/compose")))(t)
	return rehearsal{readCompose(t), strings.NewReplacer(
		"/run/secrets/database_url", database, "/run/secrets", secrets, "/data", t.TempDir(),
		"nats://nats:4222", ns.ClientURL(), "0.0.0.0:7460", freePort(t), "127.0.0.1:7470", freePort(t),
	)}, ns.ClientURL()
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
