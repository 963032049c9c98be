package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/settings"
)

func TestOTLPIsOnWhereTheEnvironmentSaysSo(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env             []string
		traces, metrics bool
	}{
		"nothing":  {nil, false, false},
		"endpoint": {[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318"}, true, true},
		"one endpoint": {
			[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://c:4318"}, true, false,
		},
		"exporter": {[]string{"OTEL_METRICS_EXPORTER=prometheus,otlp"}, false, true},
		"exporter is none": {
			[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_TRACES_EXPORTER=none"},
			false,
			true,
		},
		"disabled": {
			[]string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_SDK_DISABLED=true"},
			false,
			false,
		},
	} {
		if got := exports(settings.Environ(c.env), "TRACES"); got != c.traces {
			t.Errorf("%s: traces %v", name, got)
		}
		if got := exports(settings.Environ(c.env), "METRICS"); got != c.metrics {
			t.Errorf("%s: metrics %v", name, got)
		}
	}
}

func TestTelemetryWithoutOTLP(t *testing.T) {
	t.Parallel()
	tel, err := newTelemetry(t.Context(), nil, "test", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	counter, err := tel.meter.Int64Counter("renewd.test.things")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	_, span := tel.tracer.Start(t.Context(), "test")
	if span.IsRecording() {
		t.Error("a span is recorded that goes nowhere")
	}
	span.End()
	_, body := get(t, tel.metrics, "/metrics", "")
	for _, want := range []string{
		"renewd_test_things_total{", "} 3", "go_goroutines", `service_name="renewd"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in:\n%s", want, body)
		}
	}
	if err := tel.stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// The exporters read their endpoint from the process's own environment, so this test cannot run
// beside others.
func TestTelemetryExportsByOTLP(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]string{}
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Path] += string(body)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	tel, err := newTelemetry(t.Context(), []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL},
		"test", slog.New(slog.DiscardHandler), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, span := tel.tracer.Start(t.Context(), "process renewal.due")
	span.End()
	if err := tel.stop(context.WithoutCancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	traces := seen["/v1/traces"]
	if !strings.Contains(traces, "process renewal.due") || !strings.Contains(traces, "renewd") {
		t.Errorf("traces: %q", traces)
	}
	if _, ok := seen["/v1/metrics"]; !ok {
		t.Error("no metrics came")
	}
}

func TestTelemetryRefusesWhatItCannotSpeak(t *testing.T) {
	t.Parallel()
	_, err := newTelemetry(t.Context(), []string{"OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, "test",
		slog.New(slog.DiscardHandler), nil)
	_, ok := errors.AsType[settings.MistakeError](err)
	if !ok || !strings.Contains(err.Error(), "http/protobuf") {
		t.Errorf("got %v", err)
	}
}

func TestLogsHideSecrets(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := NewLogger(&out, &settings.Settings{LogLevel: "info", LogFormat: format})
		token := secret.New("hunter2")
		log.Info("a", "token", token, "pair", grant.Pair{Access: token}, "error", errors.New("b"))
		log.Debug("not wanted")
		text := out.String()
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "redacted") ||
			strings.Contains(text, "not wanted") {
			t.Errorf("%s: %s", format, text)
		}
	}
}
