package natsconn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/renewd/renewd/internal/settings"
)

// A publish that was reported as failed must not be sent when the connection is back.
func TestNothingIsBufferedOverAReconnect(t *testing.T) {
	t.Parallel()
	_, opts, err := Options(new(settings.Settings), nil)
	if err != nil {
		t.Fatal(err)
	}
	var o nats.Options
	for _, apply := range opts {
		if err := apply(&o); err != nil {
			t.Fatal(err)
		}
	}
	if o.ReconnectBufSize >= 0 {
		t.Errorf("ReconnectBufSize is %d, want none", o.ReconnectBufSize)
	}
}

func TestNATSContext(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	folder := filepath.Join(home, ".config", "nats", "context")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"good": `{"url":"nats://a:4222,nats://b:4222","user":"joe","password":"hunter2",` +
			`"inbox_prefix":"_INBOX_joe","tls_first":true}`,
		"empty":  `{}`,
		"domain": `{"url":"nats://a:4222","jetstream_domain":"hub"}`,
		"broken": `{`,
	} {
		if err := os.WriteFile(
			filepath.Join(folder, name+".json"), []byte(text), 0o600,
		); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=" + home}
	x, err := readContext("good", env)
	if err != nil {
		t.Fatal(err)
	}
	var o nats.Options
	for _, opt := range x.options() {
		if err := opt(&o); err != nil {
			t.Fatal(err)
		}
	}
	if x.URL != "nats://a:4222,nats://b:4222" || o.User != "joe" || o.Password != "hunter2" ||
		o.InboxPrefix != "_INBOX_joe" || !o.TLSHandshakeFirst || !o.Secure {
		t.Errorf("got %+v", x)
	}
	if x, err := readContext("empty", env); err != nil || x.URL != DefaultURL {
		t.Errorf("got %+v, %v", x, err)
	}
	if _, err := readContext(filepath.Join(folder, "good.json"), nil); err != nil {
		t.Errorf("by path: %v", err)
	}
	for name, want := range map[string]string{
		"domain":  "jetstream_domain",
		"broken":  "no JSON",
		"nowhere": "nats context ls",
	} {
		if _, err := readContext(name, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", name, err, want)
		}
	}
}
