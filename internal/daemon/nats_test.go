package daemon

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/settings"
)

func TestPatiently(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	synctest.Test(t, func(t *testing.T) {
		log, quiet := new(strings.Builder), slog.New(slog.DiscardHandler)
		began, calls := time.Now(), 0
		err := Patiently(t.Context(), slog.New(slog.NewTextHandler(log, nil)), time.Minute,
			"NATS at a:4222", "RENEWD_NATS_URL",
			func(context.Context) error { calls++; return away })
		if !errors.Is(err, away) || !strings.Contains(err.Error(), "RENEWD_NATS_URL") ||
			!strings.Contains(err.Error(), "start_timeout") {
			t.Errorf("got %v", err)
		}
		if d := time.Since(began); d != time.Minute || calls < 5 {
			t.Errorf("%d calls in %v", calls, d)
		}
		if !strings.Contains(log.String(), "waiting for NATS at a:4222") {
			t.Errorf("the log does not say what it waits for: %s", log)
		}
		began = time.Now()
		err = Patiently(t.Context(), quiet, time.Minute, "a", "b", func(context.Context) error {
			return settings.Mistake(away)
		})
		if !errors.Is(err, away) || time.Since(began) != 0 {
			t.Errorf("what cannot get better: got %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err = Patiently(ctx, quiet, time.Minute, "a", "b", func(context.Context) error {
			return away
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("told to stop: got %v", err)
		}
	})
}
