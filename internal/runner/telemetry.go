package runner

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Attributes of OpenTelemetry's messaging conventions (1.43). NATS has no well-known system value
// yet.
const (
	attrSystem    = attribute.Key("messaging.system")
	attrOperation = attribute.Key("messaging.operation.name")
	attrKind      = attribute.Key("messaging.operation.type")
	// on spans only: the subject has the user's id
	attrSubject  = attribute.Key("messaging.destination.name")
	attrTemplate = attribute.Key("messaging.destination.template")
	attrGroup    = attribute.Key("messaging.consumer.group.name")
	attrMessage  = attribute.Key("messaging.message.id")
	attrError    = attribute.Key("error.type")
	attrVerdict  = attribute.Key("renewd.verdict")
)

// startSpan begins the span of one message. The span starts a new trace and links to the trace in
// the message: a timer fires hours after its event, and a trace of hours is of no use.
func startSpan(
	ctx context.Context, tracer trace.Tracer, template, group string, m *Message,
) (context.Context, trace.Span) {
	if _, nobody := tracer.(noop.Tracer); nobody {
		return tracer.Start(ctx, "")
	}
	opts := []trace.SpanStartOption{
		trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindConsumer),
		trace.WithAttributes(attrSystem.String("nats"), attrOperation.String("process"),
			attrKind.String("process"),
			attrSubject.String(m.Subject), attrTemplate.String(template), attrGroup.String(group)),
	}
	if id := m.Header.Get("ce-id"); id != "" && len(id) <= schema.MaxID {
		opts = append(opts, trace.WithAttributes(attrMessage.String(id)))
	}
	origin := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(),
		m.Header))
	if origin.IsValid() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: origin}))
	}
	return tracer.Start(ctx, "process "+template, opts...)
}

func endSpan(span trace.Span, v *verdict) {
	span.SetAttributes(attrVerdict.String(string(v.kind)))
	if v.err != nil {
		span.SetAttributes(attrError.String(errorType(v)))
		span.SetStatus(codes.Error, v.err.Error())
	}
	span.End()
}

// errorType is of low cardinality.
func errorType(v *verdict) string {
	if m, ok := errors.AsType[*schema.Malformed](v.err); ok {
		return m.Reason
	}
	return string(v.kind)
}

// meters are the figures of one runner, without subjects and ids.
type meters struct {
	consumed    metric.Int64Counter
	duration    metric.Float64Histogram
	inHand      metric.Int64UpDownCounter
	redelivered metric.Int64Counter

	common metric.MeasurementOption
	byKind map[kind]metric.MeasurementOption
}

func newMeters(c Config) (meters, error) {
	var m meters
	var errs [4]error
	m.consumed, errs[0] = c.Meter.Int64Counter("messaging.client.consumed.messages",
		metric.WithUnit("{message}"),
		metric.WithDescription("Messages taken from a stream, by verdict."))
	m.duration, errs[1] = c.Meter.Float64Histogram("messaging.process.duration",
		metric.WithUnit("s"),
		metric.WithDescription("From taking a message to its settlement, by verdict."),
		metric.WithExplicitBucketBoundaries(.005, .01, .025, .05, .075, .1, .25, .5, .75, 1, 2.5, 5,
			7.5, 10, 30))
	m.inHand, errs[2] = c.Meter.Int64UpDownCounter("renewd.messages.in_hand",
		metric.WithUnit("{message}"),
		metric.WithDescription("Messages being handled now."))
	m.redelivered, errs[3] = c.Meter.Int64Counter("renewd.messages.redelivered",
		metric.WithUnit("{message}"),
		metric.WithDescription("Messages that were delivered before: retried, or their "+
			"worker died."))
	common := []attribute.KeyValue{
		attrSystem.String("nats"), attrOperation.String("process"), attrTemplate.String(c.Template),
		attrGroup.String(c.Durable),
	}
	m.common = metric.WithAttributeSet(attribute.NewSet(common...))
	m.byKind = map[kind]metric.MeasurementOption{}
	for _, k := range []kind{done, retry, reject, putOff, abandoned} {
		attrs := append(common[:len(common):len(common)], attrVerdict.String(string(k)))
		if k != done {
			attrs = append(attrs, attrError.String(string(k)))
		}
		m.byKind[k] = metric.WithAttributeSet(attribute.NewSet(attrs...))
	}
	return m, errors.Join(errs[:]...)
}

func (m meters) took(msg *Message) {
	ctx := context.Background()
	m.inHand.Add(ctx, 1, m.common)
	if msg.Deliveries > 1 {
		m.redelivered.Add(ctx, 1, m.common)
	}
}

func (m meters) handled(k kind, took time.Duration) {
	ctx := context.Background()
	m.inHand.Add(ctx, -1, m.common)
	m.consumed.Add(ctx, 1, m.byKind[k])
	m.duration.Record(ctx, took.Seconds(), m.byKind[k])
}
