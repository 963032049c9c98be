package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	promexporter "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/settings"
)

const instrumentation = "github.com/renewd/renewd"

// telemetry is what the parts of the program report through.
type telemetry struct {
	meter      metric.Meter
	meters     metric.MeterProvider
	tracer     trace.Tracer
	tracers    trace.TracerProvider // nil: no traces are exported
	propagator propagation.TextMapPropagator
	metrics    http.Handler
	stop       func(context.Context) error
	names      *pseudonym.Names // in logs and traces; nil: ids stay as they are
}

// newTelemetry sets up metrics for Prometheus, of this version of renewd. It exports metrics and
// traces by OTLP where the usual OTEL_ variables say so. Traces have user ids as names writes them.
// newTelemetry leaves the SDK's own variables (endpoint, headers, sampler, resource attributes) to
// the SDK.
func newTelemetry(
	ctx context.Context, environ []string, version string, logger *slog.Logger,
	names *pseudonym.Names,
) (*telemetry, error) {
	env := settings.Environ(environ)
	if p := env.Get("OTEL_EXPORTER_OTLP_PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, settings.Mistake(fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q: "+
			"renewd sends http/protobuf only: unset it, and point OTEL_EXPORTER_OTLP_ENDPOINT at "+
			"port 4318 of the collector", p))
	}
	res, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("renewd"), semconv.ServiceVersion(version)),
		resource.WithService(),
		resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, fmt.Errorf("set up telemetry: %w", err)
	}
	if env.Get("OTEL_SERVICE_NAME") == "" &&
		!strings.Contains(env.Get("OTEL_RESOURCE_ATTRIBUTES"), "service.name=") {
		res, _ = resource.Merge(res,
			resource.NewSchemaless(attribute.String("service.name", "renewd")))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape, err := promexporter.New(promexporter.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("set up metrics: %w", err)
	}
	metricOptions := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(scrape)}
	if exports(env, "METRICS") {
		exporter, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("set up OTLP metrics: %w", err)
		}
		metricOptions = append(metricOptions,
			sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)))
	}
	meters := sdkmetric.NewMeterProvider(metricOptions...)
	t := &telemetry{
		meter:      meters.Meter(instrumentation),
		meters:     meters,
		tracer:     tracenoop.NewTracerProvider().Tracer(""),
		propagator: propagation.TraceContext{},
		stop:       meters.Shutdown,
		names:      names,
		metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{
			ErrorLog:      slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
			ErrorHandling: promhttp.ContinueOnError,
		}),
	}
	if !exports(env, "TRACES") {
		return t, nil // contexts still travel: unseen spans cost a twentieth of a renewal
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up OTLP traces: %w", err), meters.Shutdown(ctx))
	}
	tracers := sdktrace.NewTracerProvider(
		sdktrace.WithResource(res), sdktrace.WithBatcher(spanExporter(exporter, names)))
	t.tracer, t.tracers = tracers.Tracer(instrumentation), tracers
	t.stop = func(ctx context.Context) error {
		return errors.Join(tracers.Shutdown(ctx), meters.Shutdown(ctx))
	}
	return t, nil
}

// exports reports whether a signal (TRACES, METRICS) goes out by OTLP: if an endpoint is set,
// unless its exporter is set to something else.
func exports(e settings.Environ, signal string) bool {
	if strings.EqualFold(e.Get("OTEL_SDK_DISABLED"), "true") {
		return false
	}
	if exporter := e.Get("OTEL_" + signal + "_EXPORTER"); exporter != "" {
		return slices.Contains(strings.Split(exporter, ","), "otlp")
	}
	return e.Get("OTEL_EXPORTER_OTLP_ENDPOINT") != "" ||
		e.Get("OTEL_EXPORTER_OTLP_"+signal+"_ENDPOINT") != ""
}

// NewLogger logs to w as the settings say.
func NewLogger(w io.Writer, s *settings.Settings) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(s.LogLevel)); err != nil {
		panic("settings: log_level was not checked: " + err.Error())
	}
	o := &slog.HandlerOptions{Level: level}
	if s.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
