package e2e

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"go.yaml.in/yaml/v3"
)

const root = "../.."

// compose is what the tests look at in docker-compose.yml.
type compose struct {
	Services map[string]service
	Secrets  map[string]struct{ File string }
	Volumes  map[string]any
}

type service struct {
	Image       string
	Entrypoint  []string
	Command     []string
	Environment map[string]string
	Ports       []string
	Volumes     []string
	Secrets     []string
	NetworkMode string               `yaml:"network_mode"`
	Restart     string               `yaml:"restart"`
	DependsOn   map[string]dependsOn `yaml:"depends_on"`
	Healthcheck *struct{ Test []string }
}

type dependsOn struct{ Condition string }

func readCompose(t *testing.T) compose {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "docker-compose.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var c compose
	if err := yaml.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestComposeStartsInOrder(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	for _, name := range []string{"nats", "postgres", "renewd", "provider"} {
		if _, ok := c.Services[name]; !ok {
			t.Errorf("no service %s", name)
		}
	}
	imageChecks := strings.Contains(readFile(t, "Dockerfile"), "\nHEALTHCHECK ")
	healthy := func(name string) bool {
		s := c.Services[name]
		return s.Healthcheck != nil && len(s.Healthcheck.Test) > 1 ||
			imageChecks && strings.HasPrefix(s.Image, "renewd:")
	}
	for name, s := range c.Services {
		once := s.Restart == "no"
		if !once && !healthy(name) {
			t.Errorf("%s: no healthcheck", name)
		}
		for other, d := range s.DependsOn {
			want := "service_healthy"
			if c.Services[other].Restart == "no" {
				want = "service_completed_successfully"
			}
			if d.Condition != want {
				t.Errorf("%s depends on %s: condition %q, want %s", name, other, d.Condition, want)
			}
		}
	}
	for _, other := range []string{"nats", "postgres"} {
		if _, ok := c.Services["renewd"].DependsOn[other]; !ok {
			t.Errorf("renewd does not wait for %s", other)
		}
	}
}

func TestComposeListensOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	published := 0
	for name, s := range readCompose(t).Services {
		for _, port := range s.Ports {
			published++
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s publishes %s beyond this machine", name, port)
			}
		}
	}
	if published == 0 {
		t.Error("nothing is published: nobody can reach it")
	}
}

func TestComposeImagesArePinned(t *testing.T) {
	t.Parallel()
	for name, s := range readCompose(t).Services {
		if !strings.HasPrefix(s.Image, "renewd:") {
			checkPinned(t, name, s.Image)
		}
	}
	required := regexp.MustCompile(`nats-server/v2 v(\S+)`).
		FindStringSubmatch(readFile(t, "go.mod"))[1]
	image := readCompose(t).Services["nats"].Image
	if !strings.HasPrefix(image, "nats:"+required+"-") {
		t.Errorf("image %s, but the tests run nats-server %s", image, required)
	}
}

func TestComposeSettingsExist(t *testing.T) {
	t.Parallel()
	known := settingNames(t)
	for name, s := range readCompose(t).Services {
		for key, value := range s.Environment {
			if strings.HasPrefix(key, "RENEWD_") && !slices.Contains(known, key) {
				t.Errorf("%s: %s is no setting of renewd", name, key)
			}
			secret := regexp.MustCompile(`PASSWORD|SECRET|TOKEN|DATABASE_URL`).MatchString(key)
			if secret && !strings.HasSuffix(key, "_FILE") {
				t.Errorf("%s: %s is set in the open: use %s_FILE", name, key, key)
			}
			file, ok := strings.CutPrefix(value, "/run/secrets/")
			if ok && !slices.Contains(s.Secrets, file) {
				t.Errorf("%s: %s wants the secret %s, which the service does not get",
					name, key, file)
			}
		}
	}
}

func TestComposeFilesExist(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	for name, s := range c.Services {
		for _, secret := range s.Secrets {
			if c.Secrets[secret].File == "" {
				t.Errorf("%s: no secret %s", name, secret)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, "./") {
				readFile(t, from)
			} else if _, ok := c.Volumes[from]; !ok {
				t.Errorf("%s: no volume %s", name, from)
			}
		}
	}
}

// Plain HTTP is allowed to loopback only, so the stand-in must listen on renewd's own loopback.
func TestComposeStandInIsOnLoopback(t *testing.T) {
	t.Parallel()
	c := readCompose(t)
	p, r := c.Services["provider"], c.Services["renewd"]
	if p.NetworkMode != "service:renewd" {
		t.Errorf("provider: network_mode %q, want service:renewd", p.NetworkMode)
	}
	auth := must(url.Parse(r.Environment["RENEWD_AUTH_URL"]))(t)
	if i := slices.Index(p.Command, "--listen"); i < 0 || p.Command[i+1] != auth.Host {
		t.Errorf("provider: %v, but renewd looks for it at %s", p.Command, auth.Host)
	}
	if host, _, _ := net.SplitHostPort(auth.Host); host != "127.0.0.1" {
		t.Errorf("RENEWD_AUTH_URL: %s, want 127.0.0.1", host)
	}
}

// Not parallel: the settings are read with an environment.
func TestComposeNATSHasJetStreamOnItsVolume(t *testing.T) {
	for _, user := range []string{"RENEWD", "OPERATOR", "DEMO"} {
		t.Setenv("RENEWD_NATS_"+user+"_PASSWORD", "x")
	}
	here := moveNATSConfig(t, "/run/secrets", composeSecrets(t))
	opts := must(server.ProcessConfigFile(filepath.Join(here, "nats.conf")))(t)
	if !opts.JetStream {
		t.Error("JetStream is off")
	}
	nats := readCompose(t).Services["nats"]
	for _, volume := range []string{
		"nats:" + opts.StoreDir, "./deploy/compose/nats.conf:/etc/nats/nats.conf:ro",
		"./deploy/compose/accounts.conf:/etc/nats/accounts.conf:ro",
	} {
		if !slices.Contains(nats.Volumes, volume) {
			t.Errorf("%s is not mounted", volume)
		}
	}
	check := strings.Join(nats.Healthcheck.Test, " ")
	if !strings.Contains(check, fmt.Sprintf("http://%s:%d/", opts.HTTPHost, opts.HTTPPort)) {
		t.Errorf("the health check %s asks elsewhere than the server listens", check)
	}
}

// checkPinned wants a tag with a full version: 1.2.3 or, for PostgreSQL, 17.7.
func checkPinned(t *testing.T, where, image string) {
	t.Helper()
	if !regexp.MustCompile(`^[^:@]+(:\d+\.\d+[.\w-]*|@sha256:[0-9a-f]{64})`).MatchString(image) {
		t.Errorf("%s: image %s is not pinned to a version", where, image)
	}
}

// readFile reads a file named from the repository's root.
func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
