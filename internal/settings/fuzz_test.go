package settings

import (
	"bytes"
	"strings"
	"testing"
)

// Whatever a settings file says, the answer is settings that keep to their ranges, or an error that
// says where; and neither the error nor what config print shows holds a secret that came from the
// environment.
func FuzzSettings(f *testing.F) {
	const secret = "s3cret-that-nobody-may-see"
	for _, seed := range []string{
		"",
		"providers:\n  - id: corp\n    preset: oidc\n" +
			"    auth_url: https://login.example.com\n    client_id: x\n",
		"nats_url: nats://a:b@c:4222\n",
		"workers: 0\n", "workers: [1]\n", "providers: {}\n",
		"providers:\n  - policy: {margin: 5m, tries: 101}\n", "synced_age: 1y\n", "a: &a [*a]\n",
		"database_url: ${X}\n", "outcome_age: -1s\nunknown: 1\n", "\xff\xfe", "? {a: b}\n: c\n",
		"providers:\n  - id: a\n  - id: a\n", "<<: {workers: 3}\n",
	} {
		f.Add([]byte(seed), "RENEWD_HTTP_ADDR=127.0.0.1:1")
	}
	f.Add([]byte("nats_url: nats://x\n"), "RENEWD_WORKERS=9999999999999999999")
	f.Fuzz(func(t *testing.T, file []byte, env string) {
		path := write(t, "renewd.yaml", string(file))
		conf, err := Load(path, []string{
			"RENEWD_CLIENT_SECRET=" + secret, "RENEWD_NATS_PASSWORD=" + secret, env,
		})
		var said bytes.Buffer
		switch {
		case err != nil:
			said.WriteString(err.Error())
			if said.Len() == 0 {
				t.Error("an error that says nothing")
			}
		default:
			conf.Print(&said)
			if conf.Workers < 1 || conf.Workers > 1024 || conf.NATSReplicas < 1 ||
				conf.SyncedAge <= 0 {
				t.Errorf("out of range: %+v", conf)
			}
			for _, p := range conf.Providers {
				if p.Concurrency < 1 || p.Timeout <= 0 ||
					p.Policy.policy().WithDefaults().Validate() != nil ||
					p.Guard.Rules().WithDefaults().Validate() != nil {
					t.Errorf("out of range: provider %s", p.ID)
				}
			}
		}
		if strings.Contains(said.String(), secret) && !strings.Contains(string(file)+env, secret) {
			t.Errorf("a secret is shown: %s", said.String())
		}
	})
}
