package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
)

// A publish that was reported as failed must not be sent when the connection is back.
func TestNothingIsBufferedOverAReconnect(t *testing.T) {
	t.Parallel()
	_, opts, err := new(configuration).natsOptions(nil)
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
		"good":   `{"url":"nats://a:4222,nats://b:4222","user":"joe","password":"hunter2","inbox_prefix":"_INBOX_joe","tls_first":true}`,
		"empty":  `{}`,
		"domain": `{"url":"nats://a:4222","jetstream_domain":"hub"}`,
		"broken": `{`,
	} {
		if err := os.WriteFile(filepath.Join(folder, name+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=" + home}
	x, err := readNATSContext("good", env)
	if err != nil {
		t.Fatal(err)
	}
	var o nats.Options
	for _, opt := range x.options() {
		if err := opt(&o); err != nil {
			t.Fatal(err)
		}
	}
	if x.URL != "nats://a:4222,nats://b:4222" || o.User != "joe" || o.Password != "hunter2" || o.InboxPrefix != "_INBOX_joe" || !o.TLSHandshakeFirst || !o.Secure {
		t.Errorf("got %+v", x)
	}
	if x, err := readNATSContext("empty", env); err != nil || x.URL != natsDefault {
		t.Errorf("got %+v, %v", x, err)
	}
	if _, err := readNATSContext(filepath.Join(folder, "good.json"), nil); err != nil {
		t.Errorf("by path: %v", err)
	}
	for name, want := range map[string]string{"domain": "jetstream_domain", "broken": "no JSON", "nowhere": "nats context ls"} {
		if _, err := readNATSContext(name, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q in it", name, err, want)
		}
	}
}

func TestPatiently(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	synctest.Test(t, func(t *testing.T) {
		log, quiet := new(strings.Builder), slog.New(slog.DiscardHandler)
		began, calls := time.Now(), 0
		err := patiently(t.Context(), slog.New(slog.NewTextHandler(log, nil)), time.Minute, "NATS at a:4222", "RENEWD_NATS_URL", func(context.Context) error { calls++; return away })
		if !errors.Is(err, away) || !strings.Contains(err.Error(), "RENEWD_NATS_URL") || !strings.Contains(err.Error(), "start_timeout") {
			t.Errorf("got %v", err)
		}
		if d := time.Since(began); d != time.Minute || calls < 5 {
			t.Errorf("%d calls in %v", calls, d)
		}
		if !strings.Contains(log.String(), "waiting for NATS at a:4222") {
			t.Errorf("the log does not say what it waits for: %s", log)
		}
		began = time.Now()
		if err := patiently(t.Context(), quiet, time.Minute, "a", "b", func(context.Context) error { return usageError{away} }); !errors.Is(err, away) || time.Since(began) != 0 {
			t.Errorf("what cannot get better: got %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if err := patiently(ctx, quiet, time.Minute, "a", "b", func(context.Context) error { return away }); !errors.Is(err, context.Canceled) {
			t.Errorf("told to stop: got %v", err)
		}
	})
}

func TestTokensFile(t *testing.T) {
	t.Parallel()
	tokens, err := readTokens(write(t, "t.json", `{"access_token":"a","refresh_token":"r","expires_in":1800,"token_type":"Bearer"}`), nil)
	if err != nil || tokens.AccessToken != "a" || tokens.RefreshToken != "r" || tokens.ExpiresIn != 30*time.Minute {
		t.Errorf("got %v, %v", tokens, err)
	}
	if tokens, err = readTokens("-", io.LimitReader(strings.NewReader(`{"access_token":"b"} `), 100)); err != nil || tokens.AccessToken != "b" {
		t.Errorf("got %v, %v", tokens, err)
	}
	for name, text := range map[string]string{"no JSON": "hunter2", "no token": `{"token":"hunter2"}`, "wrong type": `{"access_token":["hunter2"]}`} {
		if _, err := readTokens(write(t, "t.json", text), nil); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "access_token") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
