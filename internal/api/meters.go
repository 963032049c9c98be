package api

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"
)

// meters are the figures of this package. No label carries a user, a client, an address or the Host
// of a request, which is the caller's word. Labels are the description's own routes, the methods
// and statuses of its operations, and the protocol.
type meters struct {
	duration  httpconv.ServerRequestDuration
	listeners metric.Int64UpDownCounter

	known *sync.Map // the option of each answered that occurs: there are few
}

func newMeters(m metric.Meter) meters {
	out := meters{known: new(sync.Map)}
	// The names are fixed and well-formed: a refused instrument would do nothing.
	out.duration, _ = httpconv.NewServerRequestDuration(m)
	out.listeners, _ = m.Int64UpDownCounter("renewd.http.listeners",
		metric.WithUnit("{listener}"),
		metric.WithDescription("Callers who listen to outcomes over HTTP now, as event streams."))
	return out
}

// answered is the set of labels of a request's duration.
type answered struct {
	method, route, scheme, protocol string
	status                          int
}

// measure records how long each request of an operation took, an event stream's when it ends.
func (a *API) measure(ctx huma.Context, next func(huma.Context)) {
	began := time.Now()
	defer func() {
		r := answered{
			method: ctx.Operation().Method, route: ctx.Operation().Path, scheme: "http",
			protocol: protocol(ctx.Version()), status: ctx.Status(),
		}
		if ctx.Method() == http.MethodHead {
			r.method = http.MethodHead
		}
		if ctx.TLS() != nil {
			r.scheme = "https"
		}
		if r.status == 0 {
			r.status = http.StatusOK // a streamed answer
		}
		a.meters.duration.Inst().Record(ctx.Context(), time.Since(began).Seconds(),
			a.meters.with(r))
	}()
	next(ctx)
}

// protocol is the version as the conventions write it: 1.1, 2.
func protocol(v huma.ProtoVersion) string {
	if v.ProtoMajor > 1 {
		return strconv.Itoa(v.ProtoMajor)
	}
	return strconv.Itoa(v.ProtoMajor) + "." + strconv.Itoa(v.ProtoMinor)
}

// with is the option of r, made once.
func (m meters) with(r answered) metric.MeasurementOption {
	if known, ok := m.known.Load(r); ok {
		return known.(metric.MeasurementOption)
	}
	attributes := []attribute.KeyValue{
		semconv.HTTPRequestMethodKey.String(r.method), semconv.HTTPRoute(r.route),
		semconv.URLScheme(r.scheme), semconv.NetworkProtocolVersion(r.protocol),
		semconv.HTTPResponseStatusCode(r.status),
	}
	if r.status >= http.StatusInternalServerError {
		attributes = append(attributes, semconv.ErrorTypeKey.String(strconv.Itoa(r.status)))
	}
	made := metric.WithAttributeSet(attribute.NewSet(attributes...))
	m.known.Store(r, made)
	return made
}

// listens counts a listener until the result is called.
func (m meters) listens() (left func()) {
	ctx := context.Background()
	m.listeners.Add(ctx, 1)
	return func() { m.listeners.Add(ctx, -1) }
}
