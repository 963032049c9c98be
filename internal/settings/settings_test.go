package settings

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/health"
)

func TestSettingsMistakesNameTheSetting(t *testing.T) {
	t.Parallel()
	const provider = "providers:\n  - id: acme\n    preset: oidc\n" +
		"    auth_url: https://id.acme.example\n    client_id: c1\n"
	secret := write(t, "secret", "s3cret\n")
	empty := write(t, "empty", "\n")
	cases := map[string]struct {
		file string
		env  []string
		want []string
	}{
		"typo in the file": {
			"nats_prefx: a\n",
			nil,
			[]string{"file.yaml:1", "nats_prefx", "did you mean nats_prefix?"},
		},
		"typo in a provider": {
			provider + "    cleint_auth: basic\n",
			nil,
			[]string{"file.yaml:6", "providers[0].cleint_auth", "client_auth?"},
		},
		"typo in a policy": {
			provider + "    policy:\n      floors: 2s\n",
			nil,
			[]string{"file.yaml:7", "providers[0].policy.floors", "floor?"},
		},
		"typo in the environment": {
			"",
			[]string{"RENEWD_NATS_URI=nats://a"},
			[]string{"RENEWD_NATS_URI", "did you mean RENEWD_NATS_URL?"},
		},
		"nothing like it": {
			"", []string{"RENEWD_XYZZY_QWERTY=1"}, []string{"RENEWD_XYZZY_QWERTY: no such setting"},
		},
		"no YAML": {"a: [", nil, []string{"file.yaml"}},
		"a list":  {"- a\n", nil, []string{"file.yaml:1", "want a mapping"}},
		"set twice": {
			"data_dir: a\ndata_dir: b\n", nil, []string{"file.yaml:2: data_dir: set twice"},
		},
		"a list for a value":   {"data_dir: [a]\n", nil, []string{"data_dir: want one value"}},
		"providers is no list": {"providers: {a: b}\n", nil, []string{"providers: want a list"}},
		"missing file": {
			"",
			[]string{"RENEWD_CONFIG=/nowhere/renewd.yaml"},
			[]string{"RENEWD_CONFIG", "/nowhere/renewd.yaml"},
		},

		"client without a digest": {provider + "http_clients:\n  shop: {may: [read]}\n", nil,
			[]string{"http_clients.shop", "digest", "clients add --settings"}},
		"client who may the unknown": {provider + "http_clients:\n  shop: {may: [all]}\n", nil,
			[]string{"http_clients.shop", "all", "want one of"}},
		"client of a stranger": {provider + "http_clients:\n  shop: {may: [read], " +
			"digest: x, providers: [acne]}\n", nil,
			[]string{"http_clients.shop.providers", "acne"}},

		"sink of no kind": {provider + "sinks:\n  crm: {url: https://a.example}\n", nil,
			[]string{"file.yaml:6: sinks.crm.kind", "missing: want webhook, sql, redis or mail"}},
		"sink without a table": {provider + "sinks:\n  app: {kind: sql, " +
			"database_url: postgres://a}\n", nil, []string{"sinks.app.table", "missing"}},
		"sink that writes tokens": {provider + "sinks:\n  app: {kind: sql, key: id, " +
			"database_url: postgres://a, table: u, columns: {t: access_token}}\n", nil,
			[]string{"sinks.app.columns.t", "set write_tokens"}},
		"sink in clear text by SQL": {provider + "sinks:\n  app: {kind: sql, key: id, " +
			"database_url: mysql://u:p@db.example/a, table: u, columns: {t: name}}\n", nil,
			[]string{"sinks.app.database_url", "tls=true"}},
		"sink in clear text by Redis": {provider + "sinks:\n  app: {kind: redis, " +
			"redis_url: 'redis://:hunter2@cache.example'}\n", nil,
			[]string{"sinks.app.redis_url", "rediss://"}},
		"sink of mail without an operator": {provider + "sinks:\n  app: {kind: mail, " +
			"smtp_url: smtp://a.example, from: a@b.example}\n", nil,
			[]string{"sinks.app.operator", "digest"}},
		"sink of mail without its text": {provider + "sinks:\n  app: {kind: mail, " +
			"smtp_url: smtp://a.example, from: a@b.example, to: c@d.example, " +
			"text_file: /nowhere/text}\n", nil,
			[]string{"sinks.app.text_file", "/nowhere/text"}},
		"sink of tokens without a key": {provider + "sinks:\n  app: {kind: webhook, " +
			"format: set, url: https://a.example, set_issuer: https://b.example, " +
			"set_audience: c}\n", nil, []string{"sinks.app.set_key", "private key"}},
		"sink of organisations of nobody": {provider + "sinks:\n  app: {kind: sql, key: id, " +
			"database_url: postgres://a, table: t, columns: {n: name}, " +
			"organisations_table: o, organisations: {o: 'org:id'}}\n", nil,
			[]string{"sinks.app.organisations", "whose the row is"}},
		"sink of another kind": {"sinks:\n  crm: {kind: webhok}\n", nil,
			[]string{"sinks.crm.kind", "webhok", "webhook?"}},
		"typo in a sink": {"sinks:\n  crm: {kind: webhook, urll: a}\n", nil,
			[]string{"file.yaml:2", "sinks.crm.urll", "url?"}},
		"sink without secret": {provider +
			"sinks:\n  crm: {kind: webhook, url: https://a.example}\n", nil,
			[]string{"sinks.crm.secret", "openssl rand"}},
		"sink in clear text": {provider +
			"sinks:\n  crm: {kind: webhook, url: http://a.example}\n", nil,
			[]string{"sinks.crm.url", "allow_http"}},
		"sink of a stranger": {provider + "sinks:\n  crm: {kind: webhook, providers: [acne]}\n",
			nil, []string{"sinks.crm.providers", "acme?"}},
		"sink of no outcome": {provider +
			"sinks:\n  crm: {kind: webhook, types: [user.sync]}\n", nil,
			[]string{"sinks.crm.types", "user.synced?"}},
		"sink's name": {provider + "sinks:\n  CRM.x: {kind: webhook}\n", nil,
			[]string{"sinks.CRM.x", "1-32 of a-z"}},
		"sink and sender": {provider +
			"senders: {sink-crm: {}}\nsinks:\n  crm: {kind: webhook}\n", nil,
			[]string{"sinks.crm", "the sender sink-crm could read"}},

		"duration": {
			"outcome_age: soon\n", nil, []string{"outcome_age", "want a duration"},
		},
		"bare number": {
			"drain_timeout: 30\n", nil, []string{"drain_timeout", "want a duration"},
		},
		"too short": {"outcome_age: 1s\n", nil, []string{"outcome_age", "1h or more"}},
		"size": {
			"outcome_bytes: 4GB\n", nil, []string{"outcome_bytes", "want a size such as 512MiB"},
		},
		"size of all": {
			"command_bytes: 99999999TiB\n", nil, []string{"command_bytes", "want a size"},
		},
		"too small": {
			"command_bytes: 64KiB\n",
			nil,
			[]string{"command_bytes", "64KiB: want 1MiB or more, or none"},
		},
		"number": {
			"", []string{"RENEWD_WORKERS=many"}, []string{"RENEWD_WORKERS", "whole number"},
		},
		"too many": {
			"", []string{"RENEWD_WORKERS=100000"}, []string{"RENEWD_WORKERS", "1024 or less"},
		},
		"bool": {
			"streams_apply: perhaps\n", nil, []string{"streams_apply", "true or false"},
		},
		"one of": {
			"log_level: inof\n", nil, []string{"log_level", "debug, info", "did you mean info?"},
		},
		"no host": {
			provider + "    endpoint_hosts: https://b.example\n",
			nil,
			[]string{"endpoint_hosts", "want a host"},
		},
		"not a number": {
			provider + "    rate: NaN\n", nil, []string{"rate", "want a number"},
		},
		"replicas even": {
			"nats_url: nats://a\nnats_replicas: 2\n", nil, []string{"nats_replicas", "1 or 3"},
		},
		"replicas alone": {
			"nats_replicas: 3\n", nil, []string{"nats_replicas", "RENEWD_NATS_URL"},
		},
		"nats address": {
			"nats_url: http://a:4222\n", nil, []string{"nats_url", "want nats://"},
		},
		"accounts and a server": {
			"",
			[]string{"RENEWD_NATS_ACCOUNTS=" + secret, "RENEWD_NATS_URL=nats://a"},
			[]string{"RENEWD_NATS_ACCOUNTS", "nats_url"},
		},
		"accounts and a token": {
			"",
			[]string{"RENEWD_NATS_ACCOUNTS=" + secret, "RENEWD_NATS_TOKEN=t"},
			[]string{"RENEWD_NATS_ACCOUNTS", "nats_token"},
		},
		"no accounts": {
			"",
			[]string{"RENEWD_NATS_ACCOUNTS=/nowhere/nats.conf"},
			[]string{"RENEWD_NATS_ACCOUNTS", "/nowhere/nats.conf"},
		},
		"a password of nobody": {
			"",
			[]string{"RENEWD_NATS_SHOP_PASSWORD=p"},
			[]string{"RENEWD_NATS_SHOP_PASSWORD", "no such setting"},
		},
		"typo beside accounts": {
			"",
			[]string{"RENEWD_NATS_ACCOUNTS=" + secret, "RENEWD_NATS_SHOP_PASWORD=p"},
			[]string{"RENEWD_NATS_SHOP_PASWORD", "no such setting"},
		},
		"nats prefix": {"nats_prefix: a..b\n", nil, []string{"nats_prefix", "tokens"}},
		"nats user alone": {
			"", []string{"RENEWD_NATS_USER=u"}, []string{"RENEWD_NATS_USER", "nats_password"},
		},
		"user and token": {
			"",
			[]string{"RENEWD_NATS_USER=u", "RENEWD_NATS_PASSWORD=p", "RENEWD_NATS_TOKEN=t"},
			[]string{"RENEWD_NATS_TOKEN", "nats_user"},
		},
		"cert alone": {
			"nats_cert: " + secret + "\n", nil, []string{"nats_cert", "nats_key"},
		},
		"creds missing": {
			"nats_creds: /nowhere/a.creds\n", nil, []string{"nats_creds", "/nowhere/a.creds"},
		},
		"nkey": {
			"nats_nkey: " + secret + "\n", nil, []string{"nats_nkey", "no nkey seed"},
		},
		"listen openly": {
			"nats_listen: 0.0.0.0:4222\n", nil, []string{"nats_listen", "RENEWD_NATS_TOKEN"},
		},
		"listen by a word": {
			"nats_listen: 0.0.0.0:4222\nnats_token: hunter2\n",
			nil,
			[]string{"nats_token", "16 or more"},
		},
		"listen remotely": {
			"nats_url: nats://a\nnats_listen: 127.0.0.1:4222\n",
			nil,
			[]string{"nats_listen", "embedded"},
		},
		"listen nowhere": {"nats_listen: here\n", nil, []string{"nats_listen", "host:port"}},
		"url and context": {
			"nats_url: nats://a\nnats_context: b\n", nil, []string{"nats_context", "nats_url"},
		},
		"database": {
			"database_url: 'postgres://u:hunter2@h:port/d'\n",
			nil,
			[]string{"database_url", "postgres://user:password@host"},
		},
		"http address": {"http_addr: '7460'\n", nil, []string{"http_addr", "host:port"}},
		"short token":  {"http_token: hunter2\n", nil, []string{"http_token", "16"}},

		"secret twice": {
			"",
			[]string{"RENEWD_HTTP_TOKEN=a", "RENEWD_HTTP_TOKEN_FILE=" + secret},
			[]string{"RENEWD_HTTP_TOKEN", "RENEWD_HTTP_TOKEN_FILE"},
		},
		"secret twice too": {
			"http_token: a\nhttp_token_file: " + secret + "\n",
			nil,
			[]string{"http_token", "http_token_file"},
		},
		"secret missing": {
			"",
			[]string{"RENEWD_HTTP_TOKEN_FILE=/nowhere/token"},
			[]string{"RENEWD_HTTP_TOKEN_FILE", "/nowhere/token"},
		},
		"secret empty": {
			"http_token_file: " + empty + "\n", nil, []string{"http_token_file", "empty"},
		},

		"provider id": {
			strings.Replace(provider, "acme", "Acme!", 1), nil, []string{"providers[0].id", "a-z"},
		},
		"two of one id": {
			provider + strings.TrimPrefix(provider, "providers:\n"),
			nil,
			[]string{"providers[1].id", "two providers"},
		},
		"no address": {
			"",
			[]string{"RENEWD_CLIENT_ID=c"},
			[]string{"providers[0].auth_url", "RENEWD_AUTH_URL"},
		},
		"no client": {
			"",
			[]string{"RENEWD_AUTH_URL=https://a.example"},
			[]string{"providers[0].client_id", "RENEWD_CLIENT_ID"},
		},
		"client auth": {
			provider + "    client_auth: header\n",
			nil,
			[]string{"providers[0].client_auth", "basic, post, none"},
		},
		"plain http": {
			"",
			[]string{"RENEWD_AUTH_URL=http://a.example", "RENEWD_CLIENT_ID=c"},
			[]string{"RENEWD_AUTH_URL", "https://"},
		},
		"plain http loopback": {
			"",
			[]string{"RENEWD_AUTH_URL=http://127.0.0.1:1", "RENEWD_CLIENT_ID=c"},
			[]string{"RENEWD_AUTH_URL", "RENEWD_ALLOW_HTTP_LOOPBACK"},
		},
		"no address at all": {
			"",
			[]string{"RENEWD_AUTH_URL=a.example", "RENEWD_CLIENT_ID=c"},
			[]string{"RENEWD_AUTH_URL", "https://"},
		},
		"password in address": {
			"",
			[]string{"RENEWD_AUTH_URL=https://u:hunter2@a.example", "RENEWD_CLIENT_ID=c"},
			[]string{"RENEWD_AUTH_URL", "without user"},
		},
		"policy order": {
			provider + "    policy: {retry_min: 10s, retry_max: 1s}\n",
			nil,
			[]string{"policy", "retry_max"},
		},
		"policy range": {
			provider + "    policy: {margin_share: 0.95}\n",
			nil,
			[]string{"providers[0].policy.margin_share", "0.9 or less"},
		},
		"windows": {
			provider + "    policy: {windows: 9 to 5}\n", nil,
			[]string{"providers[0].policy.windows", "Mon-Fri 09:00-17:00 Europe/Berlin"},
		},
		"windows by env": {
			provider, []string{"RENEWD_POLICY_WINDOWS=Mon 09:00-17:00 Mars/Olympus"},
			[]string{"RENEWD_POLICY_WINDOWS", "Mars/Olympus"},
		},
		"idle for no time": {
			provider + "    policy: {idle: 1m}\n", nil,
			[]string{"providers[0].policy.idle", "10m or more, or 0"},
		},
		"a short session": {
			provider + "    policy: {session_max: 1s}\n", nil,
			[]string{"providers[0].policy.session_max", "1m or more, or 0"},
		},
		"policy zero": {
			provider + "    policy: {floor: 0s}\n",
			nil,
			[]string{"providers[0].policy.floor", "or more"},
		},
		"policy by env": {
			provider,
			[]string{"RENEWD_POLICY_TRIES=0"},
			[]string{"RENEWD_POLICY_TRIES", "1 or more"},
		},
		"guard order": {
			provider + "    guard: {open_min: 10s, open_max: 1s}\n",
			nil,
			[]string{"guard", "open_max"},
		},
		"typo in a guard": {
			provider + "    guard: {dead_mix: 1}\n",
			nil,
			[]string{"providers[0].guard.dead_mix", "dead_min?"},
		},
		"preset": {
			strings.Replace(provider, "oidc", "odic", 1),
			nil,
			[]string{":3: providers[0].preset", "odic"},
		},
		"secret missing for its client_auth": {
			provider + "    client_auth: basic\n",
			nil,
			[]string{":2: providers[0].client_secret", "missing"},
		},
		"provider timeout": {
			provider + "    timeout: 1h\n", nil, []string{"providers[0].timeout", "2m or less"},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := ""
			if c.file != "" {
				file = write(t, "file.yaml", c.file)
			}
			_, err := Load(file, c.env)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			for _, secret := range []string{"hunter2", "s3cret"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("a secret is in: %v", err)
				}
			}
		})
	}
}

// The hosts of a provider's endpoints reach its client, from the environment too.
func TestEndpointHosts(t *testing.T) {
	t.Parallel()
	c, err := Load("", []string{
		"RENEWD_PROVIDER_PRESET=oidc", "RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c1",
		"RENEWD_ENDPOINT_HOSTS=b.example c.example:8443",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"b.example", "c.example:8443"}
	if got := c.Providers[0].ClientConfig().EndpointHosts; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestSettingsAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Load(write(t, "file.yaml", "data_dri: a\nworkers: x\n"),
		[]string{"RENEWD_LOG_LEVEL=loud", "RENEWD_NOPE=1"})
	for _, want := range []string{"data_dri", "workers", "RENEWD_LOG_LEVEL", "RENEWD_NOPE"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestSettingsPrecedence(t *testing.T) {
	t.Parallel()
	secret := write(t, "secret", "from-a-file\n")
	file := write(t, "renewd.yaml", `
# The file says so.
data_dir: /from/file
log_level: debug
outcome_age: 30d
providers:
  - id: acme
    preset: oidc
    auth_url: https://id.acme.example
    client_id: c1
    client_secret_file: `+secret+`
    policy: {floor: 1m}
  - {id: second, auth_url: "https://b.example", client_id: c2}
`)
	c, err := Load("", []string{
		"RENEWD_CONFIG=" + file,
		"RENEWD_DATA_DIR=/from/env",
		"RENEWD_LOG_LEVEL=",
		"RENEWD_PROVIDER_ID=second",
		"RENEWD_CLIENT_ID=c3",
		"RENEWD_POLICY_TRIES=9",
		"HOME=/x",
		"RENEWD_SERVICE_HOST=10.0.0.1",
		"RENEWD_PORT=tcp://10.0.0.1:7460",
		"RENEWD_PORT_7460_TCP_ADDR=10.0.0.1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/from/env" || c.LogLevel != "debug" || FormatDuration(c.OutcomeAge) != "30d" ||
		c.Workers != 32 {
		t.Errorf("got %+v", c)
	}
	if len(c.Providers) != 2 || c.Providers[0].ClientSecret.Reveal() != "from-a-file" ||
		c.Providers[0].Policy.Floor.String() != "1m0s" {
		t.Fatalf("got %+v", c.Providers)
	}
	p, _ := c.Provider("second")
	if p.ClientID != "c3" || p.Policy.Tries != 9 || p.Preset != "propelauth" {
		t.Errorf("got %+v", p)
	}
	want := map[string]string{
		"data_dir":                   "RENEWD_DATA_DIR",
		"log_level":                  file + ":4",
		"outcome_age":                file + ":5",
		"providers[0]":               file + ":7",
		"providers[1]":               file + ":13",
		"providers[0].id":            file + ":7",
		"providers[0].preset":        file + ":8",
		"providers[0].auth_url":      file + ":9",
		"providers[0].client_id":     file + ":10",
		"providers[0].client_secret": file + ":11",
		"providers[0].policy.floor":  file + ":12",
		"providers[1].id":            "RENEWD_PROVIDER_ID",
		"providers[1].auth_url":      file + ":13",
		"providers[1].client_id":     "RENEWD_CLIENT_ID",
		"providers[1].policy.tries":  "RENEWD_POLICY_TRIES",
	}
	if !maps.Equal(c.origins, want) {
		t.Errorf("origins: got %v\nwant %v", c.origins, want)
	}
}

func TestSettingsFromEnvironmentAlone(t *testing.T) {
	t.Parallel()
	c, err := Load("", []string{
		"RENEWD_AUTH_URL=https://1234.propelauthtest.com",
		"RENEWD_CLIENT_ID=c1",
		"RENEWD_CLIENT_SECRET=s",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Providers) != 1 || c.Providers[0].ID != "propelauth" || !c.Embedded() ||
		c.KeysPath() != filepath.Join("renewd-data", "keys.json") {
		t.Errorf("got %+v", c)
	}
}

// What is printed can be read again, says the same, and holds no secret.
func TestSettingsPrintIsASettingsFileWithoutSecrets(t *testing.T) {
	t.Parallel()
	file := write(t, "renewd.yaml", `
nats_url: nats://joe:hunter2@a:4222,nats://hunter2@b:4222
database_url: postgres://joe:hunter2@db:5432/app?sslmode=disable
allow_plaintext: true
http_token: hunter2-hunter2-hunter2
outcome_age: 36h
providers:
  - {auth_url: "https://b.example", client_id: c2, client_secret: hunter2,
     policy: {retry_later: 90s}, guard: {hold: 2h}}
`)
	c, err := Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c.Print(&out)
	if strings.Contains(out.String(), "hunter2") {
		t.Fatalf("a secret is printed:\n%s", out.String())
	}
	for _, want := range []string{
		"nats://joe:[redacted]@a:4222,nats://[redacted]@b:4222",
		"postgres://joe:[redacted]@db:5432/app?sslmode=disable", file + ":5", "# default",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in:\n%s", want, out.String())
		}
	}
	var doc map[string]any
	if err := yaml.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(out.String(), "[redacted]", "0123456789abcdef")
	again, err := Load(write(t, "again.yaml", text), nil)
	if err != nil {
		t.Fatalf("what is printed cannot be read: %v\n%s", err, text)
	}
	if again.OutcomeAge != c.OutcomeAge || again.Providers[0].Policy != c.Providers[0].Policy ||
		again.Providers[0].ClientID != "c2" {
		t.Errorf("what is printed says something else:\n%s", out.String())
	}
}

func TestRedactURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                              "",
		"host:4222":                     "host:4222",
		"nats://a:4222":                 "nats://a:4222",
		"nats://tok@a":                  "nats://[redacted]@a",
		"nats://u:p@a/x":                "nats://u:[redacted]@a/x",
		"postgres://h/d?password=p&a=b": "postgres://h/d?[redacted]",
		"host=h password=p":             "[redacted]",
		"u:p@h:1":                       "[redacted]",
	} {
		if got := redactURL(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// Without any setting the rules are the packages' own defaults, so that the table does not lie.
func TestPolicyDefaultsAreThoseOfThePackages(t *testing.T) {
	t.Parallel()
	got, want := new(loader).newProvider().Policy.policy(), grant.Policy{}.WithDefaults()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	rules, defaults := new(loader).newProvider().Guard.Rules(), health.Rules{}.WithDefaults()
	if rules != defaults {
		t.Errorf("got %+v, want %+v", rules, defaults)
	}
}

func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	means := meanings()
	var names []string
	for _, r := range allSettings() {
		if means[r.field] == "" || !strings.HasPrefix(r.env, "RENEWD_") && r.env != "" {
			t.Errorf("%s: no doc, or the name %q", r.key, r.env)
		}
		if r.env == "" {
			continue // a list, a mapping, or what is in one
		}
		if slices.Contains(names, r.env) {
			t.Errorf("%s is there twice", r.env)
		}
		names = append(names, r.env)
	}
	if len(names) < 40 {
		t.Errorf("only %d settings", len(names))
	}
}

// The README's table is what `renewd config print --docs` prints.
func TestReadmeTableIsUpToDate(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "<!-- settings -->\n")
	table, _, end := strings.Cut(rest, "<!-- /settings -->")
	if !ok || !end {
		t.Fatal("README.md: want the settings table between <!-- settings " +
			"--> and <!-- /settings -->")
	}
	var want bytes.Buffer
	Table(&want)
	if strings.TrimSpace(table) != strings.TrimSpace(want.String()) {
		t.Error("README.md: the settings table is not what `renewd config print --docs` prints: " +
			"put that between the markers")
	}
}

func TestDidYouMean(t *testing.T) {
	t.Parallel()
	for word, want := range map[string]string{
		"nats_ur":  "nats_url",
		"NATS_URL": "nats_url",
		"datadir":  "data_dir",
		"zzzzzzzz": "",
	} {
		got := DidYouMean(word, []string{"nats_url", "data_dir", "nats_user"})
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", word, got, want)
		}
	}
}

// An operator corrects a file once, not once for each kind of mistake, and is told nothing of a
// setting that only follows from another mistake.
func TestSettingsMistakesAreToldTogether(t *testing.T) {
	file := write(t, "all.yaml", `workers: many
http_addr: 7460
nats_user: renewd
nats_password_file: /nowhere
providers:
  - {id: corp, preset: odic, auth_url: "http://a.example"}
  - id: corp
    preset: oidc
    auth_url: https://b.example
    client_id: x
    client_secret_file: /nowhere
    confirm_min: 3s
    policy: {margin: 300, retry_min: 10m, retry_max: 1m}
`)
	_, err := Load(file, nil)
	if err == nil {
		t.Fatal("no mistake")
	}
	var got []string
	for line := range strings.Lines(strings.ReplaceAll(err.Error(), file, "")) {
		place, _, _ := strings.Cut(line, ": ")
		rest := strings.TrimPrefix(line, place+": ")
		name, _, _ := strings.Cut(rest, ": ")
		got = append(got, place+" "+name)
	}
	slices.Sort(got)
	want := []string{
		":1 workers", ":11 providers[1].client_secret_file", ":12 providers[1].confirm_min",
		":13 providers[1].policy.margin",
		":13 providers[1].policy.retry_max", ":2 http_addr", ":4 nats_password_file",
		":6 providers[0].auth_url",
		":6 providers[0].client_id", ":6 providers[0].preset", ":7 providers[1].id",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A size is written as it is read.
func TestSizes(t *testing.T) {
	for text, want := range map[string]ByteSize{
		"none":    0,
		"4GiB":    4 << 30,
		"1536KiB": 1536 << 10,
		"7B":      7,
		"2TiB":    2 << 40,
	} {
		if got, err := parseBytes(text); err != nil || got != want || got.String() != text {
			t.Errorf("%s is read as %d and written %s, %v", text, got, got, err)
		}
	}
	for _, text := range []string{
		"", "0", "0B", "-1GiB", "1.5GiB", "GiB", "4", "9223372036854775807KiB", "NONE",
	} {
		if got, err := parseBytes(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

// The environment of a NATS server with accounts may be renewd's too.
func TestPasswordsOfOurUsersAreNoMistake(t *testing.T) {
	t.Parallel()
	_, err := Load("", []string{
		"RENEWD_AUTH_URL=https://a.example", "RENEWD_CLIENT_ID=c",
		"RENEWD_NATS_URL=nats://127.0.0.1",
		"RENEWD_NATS_OPERATOR_PASSWORD=p", "RENEWD_NATS_RENEWD_PASSWORD=p",
	})
	if err != nil {
		t.Error(err)
	}
}
