package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/testkit/pgtest"
	"github.com/renewd/renewd/internal/testkit/proc"
)

// rehearsal runs what docker-compose.yml says without containers: the same commands with the same
// settings, but for addresses and folders.
type rehearsal struct {
	compose  compose
	secrets  string // the folder that setup.sh filled
	moved    *strings.Replacer
	nats     string // tls://…
	database string // host:port
	http     string // host:port, of renewd
}

// A person's first `docker compose up` must show users being renewed.
func TestComposeRehearsal(t *testing.T) {
	r := rehearse(t)
	for range 2 { // the second `up` finds the keyring
		if err := r.command(t, "keys").Run(); err != nil {
			t.Fatalf("keys: %v", err)
		}
	}
	r.refuses(t)
	password := readSecrets(t, r.secrets)["nats_demo_password"]
	ca := nats.RootCAs(filepath.Join(r.secrets, "ca"))
	nc := must(nats.Connect(r.nats, ca, nats.UserInfo("demo", password)))(t)
	defer nc.Close()
	events := must(nc.SubscribeSync("user.>"))(t)
	for _, name := range []string{"migrate", "renewd", "durable", "provider"} {
		if r.compose.Services[name].Restart == "no" {
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
		seen[m.Subject] = true
		if !strings.Contains(string(m.Data), `"sender":"demo"`) &&
			strings.Contains(string(m.Data), `"type":"user.login"`) {
			t.Errorf("%s does not name the login's sender", m.Subject)
		}
	}
	if err := nc.Publish("user.refresh_due.propelauth.user-01", nil); err != nil {
		t.Fatal(err)
	}
	for {
		m := must(events.NextMsg(30 * time.Second))(t)
		if m.Subject == "user.synced.propelauth.user-01" &&
			strings.Contains(string(m.Data), `"type":"user.refresh_due"`) {
			break
		}
	}
}

// refuses checks that neither server takes a connection without a password, or without TLS.
func (r rehearsal) refuses(t *testing.T) {
	t.Helper()
	ca, made := nats.RootCAs(filepath.Join(r.secrets, "ca")), readSecrets(t, r.secrets)
	plain := strings.Replace(r.nats, "tls://", "nats://", 1)
	known := nats.UserInfo("demo", made["nats_demo_password"])
	for what, opts := range map[string][]nats.Option{
		"no password": {ca}, "an unknown authority": {known},
	} {
		if nc, err := nats.Connect(plain, opts...); err == nil {
			nc.Close()
			t.Errorf("NATS lets in who has %s", what)
		}
	}
	at := must(url.Parse(made["database_url_worker"]))(t)
	for what, change := range map[string]func(q url.Values){
		"no TLS":               func(q url.Values) { q.Set("sslmode", "disable") },
		"an unknown authority": func(q url.Values) { q.Del("sslrootcert") },
		"no password":          func(url.Values) { at.User = url.User("renewd_worker") },
		"the superuser's name": func(url.Values) {
			at.User = url.UserPassword("postgres", made["postgres_password"])
		},
	} {
		was, q := *at, at.Query()
		change(q)
		at.RawQuery = q.Encode()
		if conn, err := pgx.Connect(t.Context(), at.String()); err == nil {
			_ = conn.Close(t.Context())
			t.Errorf("PostgreSQL lets in who has %s", what)
		}
		*at = was
	}
}

// rehearse starts what the other services depend on: NATS and PostgreSQL with the demo's own
// settings, certificates and passwords.
func rehearse(t *testing.T) (r rehearsal) {
	t.Helper()
	r = rehearsal{compose: readCompose(t), secrets: composeSecrets(t)}
	ns := rehearseNATS(t, r.compose, r.secrets)
	r.nats = strings.Replace(ns.url, "nats://", "tls://", 1)
	r.database = rehearsePostgres(t, r.compose, r.secrets)
	for _, role := range []string{"owner", "worker"} {
		file := filepath.Join(r.secrets, "database_url_"+role)
		at := strings.NewReplacer("postgres:5432", r.database, "/run/secrets", r.secrets)
		text := at.Replace(string(must(os.ReadFile(file))(t)))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.http = proc.FreeAddrFor(t)
	r.moved = strings.NewReplacer("/run/secrets/", r.secrets+"/", "/data", t.TempDir(), "$$", "$",
		"tls://nats:4222", r.nats, "0.0.0.0:7460", r.http, "127.0.0.1:7470", proc.FreeAddrFor(t))
	return r
}

// rehearseNATS runs the command of the service nats with the settings that are mounted for it.
func rehearseNATS(t *testing.T, c compose, secrets string) natsAccounts {
	t.Helper()
	ports := t.TempDir()
	etc := moveNATSConfig(t, `"/data"`, fmt.Sprintf("%q", t.TempDir()),
		"127.0.0.1:8222", proc.FreeAddrFor(t), "/run/secrets", secrets)
	args := slices.Concat(c.Services["nats"].Entrypoint, c.Services["nats"].Command)
	here := strings.NewReplacer(
		"$$", "$", "/run/secrets", secrets, "/etc/nats/nats.conf",
		filepath.Join(etc, "nats.conf")+" "+strings.Join(onFreePort(ports), " "),
	)
	for i := range args {
		args[i] = here.Replace(args[i])
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(),
		"PATH="+filepath.Dir(must(natsServer())(t))+":"+os.Getenv("PATH"))
	return startNATS(t, cmd, ports)
}

// moveNATSConfig copies the settings of the service nats to a folder, with texts replaced, and
// returns the folder.
func moveNATSConfig(t *testing.T, oldnew ...string) string {
	t.Helper()
	folder, moved := t.TempDir(), strings.NewReplacer(oldnew...)
	for _, name := range []string{"nats.conf", "accounts.conf"} {
		text := moved.Replace(readFile(t, "deploy/compose/"+name))
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// rehearsePostgres does what the image does. It runs the scripts that are mounted, and then the
// server with the arguments of the service postgres. It returns the server's address.
func rehearsePostgres(t *testing.T, c compose, secrets string) (address string) {
	t.Helper()
	db, service := startPostgres(t), c.Services["postgres"]
	at := must(url.Parse(db.URL("renewd")))(t)
	tool := db.Tool(t.Context(), "psql", "--command", "CREATE DATABASE renewd", db.URL("postgres"))
	environ := append(os.Environ(),
		"PATH="+filepath.Dir(tool.Path)+":"+os.Getenv("PATH"), "PGHOST="+at.Hostname(),
		"PGPORT="+at.Port(),
		"POSTGRES_USER="+at.User.Username(), "POSTGRES_DB=renewd", "SECRETS_FOLDER="+secrets)
	programs := []*exec.Cmd{tool}
	for _, volume := range service.Volumes { // in the order of their names there
		script, _, ok := strings.Cut(volume, ":/docker-entrypoint-initdb.d/")
		switch script = must(filepath.Abs(filepath.Join(root, script)))(t); {
		case ok && filepath.Ext(script) == ".sql":
			args := []string{
				"--set", "ON_ERROR_STOP=1", "--no-psqlrc", "--file", script, at.String(),
			}
			programs = append(programs, db.Tool(t.Context(), "psql", args...))
		case ok:
			programs = append(programs, exec.CommandContext(t.Context(), script))
		}
	}
	for _, cmd := range programs {
		cmd.Env = environ
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
	}
	own := map[string]string{
		"ssl_cert_file": filepath.Join(secrets, "postgres_cert"),
		"ssl_key_file":  filepath.Join(secrets, "postgres_key"),
		"hba_file":      filepath.Join(root, "deploy/compose/pg_hba.conf"),
	}
	var settings []string
	flag := regexp.MustCompile(`-c (\w+)=(\S+)`)
	for _, m := range flag.FindAllStringSubmatch(service.Command[0], -1) {
		if file := own[m[1]]; file != "" {
			m[2] = must(db.Own(file))(t)
		}
		settings = append(settings, m[1]+"="+m[2])
	}
	if err := db.Reconfigure(settings...); err != nil {
		t.Fatal(err)
	}
	return at.Host
}

// settings returns a service's settings, over those of the image.
func (r rehearsal) settings(t *testing.T, name string) (environ []string) {
	t.Helper()
	all := map[string]string{}
	for _, kv := range regexp.MustCompile(`(RENEWD_\w+)=(\S+)`).
		FindAllStringSubmatch(readFile(t, "Dockerfile"), -1) {
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
	cmd.Stdout, cmd.Stderr = nil, nil // the check fails until the service is up
	return cmd.Run()
}

// startPostgres starts a server that keeps what it acknowledges, as production does.
func startPostgres(t *testing.T) *pgtest.Server {
	t.Helper()
	db, err := pgtest.Start(pgtest.Options{Durable: true, TCP: true})
	if errors.Is(err, pgtest.ErrMissing) && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Remove)
	return db
}
