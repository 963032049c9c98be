package daemon

import (
	"context"
	"slices"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/renewd/renewd/internal/pseudonym"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
)

// namesOf is how user ids stand in logs and traces; nil: as they are.
func namesOf(conf *settings.Settings) *pseudonym.Names {
	if conf.UserIDs != "hashed" {
		return nil
	}
	return pseudonym.New(topology.Fronts(conf.Subjects()), conf.ProviderIDs())
}

// spanExporter is to without user ids.
func spanExporter(to sdktrace.SpanExporter, names *pseudonym.Names) sdktrace.SpanExporter {
	if names == nil {
		return to
	}
	return namelessExporter{to, names}
}

type namelessExporter struct {
	sdktrace.SpanExporter
	names *pseudonym.Names
}

func (x namelessExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	out := make([]sdktrace.ReadOnlySpan, len(spans))
	for i, s := range spans {
		out[i] = namelessSpan{s, x.names}
	}
	return x.SpanExporter.ExportSpans(ctx, out)
}

// namelessSpan is a span without user ids in its name, attributes, events and status.
type namelessSpan struct {
	sdktrace.ReadOnlySpan
	names *pseudonym.Names
}

func (s namelessSpan) Name() string { return s.names.Text(s.ReadOnlySpan.Name()) }

func (s namelessSpan) Attributes() []attribute.KeyValue {
	return s.clean(s.ReadOnlySpan.Attributes())
}

func (s namelessSpan) Status() sdktrace.Status {
	status := s.ReadOnlySpan.Status()
	status.Description = s.names.Text(status.Description)
	return status
}

func (s namelessSpan) Events() []sdktrace.Event {
	events := slices.Clone(s.ReadOnlySpan.Events())
	for i, e := range events {
		events[i].Name, events[i].Attributes = s.names.Text(e.Name), s.clean(e.Attributes)
	}
	return events
}

func (s namelessSpan) clean(in []attribute.KeyValue) []attribute.KeyValue {
	out := slices.Clone(in)
	for i, a := range out {
		switch a.Value.Type() {
		case attribute.STRING:
			out[i].Value = attribute.StringValue(s.names.Text(a.Value.AsString()))
		case attribute.STRINGSLICE:
			texts := a.Value.AsStringSlice()
			for j := range texts {
				texts[j] = s.names.Text(texts[j])
			}
			out[i].Value = attribute.StringSliceValue(texts)
		}
	}
	return out
}
