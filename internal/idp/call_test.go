package idp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp"
	"github.com/renewd/renewd/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quietTLS is a TLS server that says nothing of handshakes that fail, as some here must.
func quietTLS(t *testing.T, h http.Handler) (*httptest.Server, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return s, pool
}

// h2frame reads one frame of HTTP/2 (RFC 9113 section 4.1).
func h2frame(r io.Reader) (kind, flags byte, stream uint32, body []byte, err error) {
	var head [9]byte
	if _, err = io.ReadFull(r, head[:]); err != nil {
		return 0, 0, 0, nil, err
	}
	body = make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
	_, err = io.ReadFull(r, body)
	return head[3], head[4], binary.BigEndian.Uint32(head[5:]), body, err
}

func writeH2(w io.Writer, kind byte, stream uint32, body []byte) {
	head := []byte{0, 0, byte(len(body)), kind, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[5:], stream)
	_, _ = w.Write(append(head, body...))
}

// resetting speaks as much HTTP/2 as it takes to read each request to its end and then reset its
// stream with an error code.
func resetting(l net.Listener, code uint32, seen *atomic.Int32) {
	const data, reset, settings, endStream = 0, 3, 4, 1
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		preface := make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
		_, _ = io.ReadFull(conn, preface)
		writeH2(conn, settings, 0, nil)
		for {
			kind, flags, stream, body, err := h2frame(conn)
			if err != nil {
				break
			}
			if kind != data || flags&endStream == 0 {
				continue
			}
			if bytes.Contains(body, []byte(canary)) {
				seen.Add(1)
			}
			writeH2(conn, reset, stream, binary.BigEndian.AppendUint32(nil, code))
		}
		conn.Close()
	}
}

// Over HTTP/2 net/http sends a request again by itself, up to six times, where the server resets
// its stream with one of these codes. That such a server has not looked at the request is a promise
// that not every proxy keeps.
func TestResetStreamIsNotSentAgain(t *testing.T) {
	certified, pool := quietTLS(t, nil)
	const protocolError, refusedStream = 1, 7
	for _, code := range []uint32{protocolError, refusedStream} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
			Certificates: certified.TLS.Certificates,
			NextProtos:   []string{"h2"},
		})
		if err != nil {
			t.Fatal(err)
		}
		var seen atomic.Int32
		done := make(chan struct{})
		go func() { defer close(done); resetting(l, code, &seen) }()
		p := open(t, "https://"+l.Addr().String(), func(c *idp.Config) { c.RootCAs = pool })
		if f := fault(t, p); f.Class != grant.Ambiguous || seen.Load() != 1 {
			t.Errorf("code %d: %v, the token was seen %d times", code, f, seen.Load())
		}
		l.Close()
		p.Close()
		<-done
	}
}

// A connection that the server closed while it was idle costs nothing: nothing of the request was
// written to it.
func TestClosedIdleConnectionIsReplaced(t *testing.T) {
	closed := make(chan struct{}, 8)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"access_token":"a"}`))
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	s.Start()
	defer s.Close()
	p := open(t, s.URL, nil)
	for range 3 {
		if _, err := p.Refresh(t.Context(), secret.New(canary)); err != nil {
			t.Fatal(err)
		}
		p.Close()
		<-closed
	}
}

func TestHandshakeFailuresAreUnsent(t *testing.T) {
	untrusted, pool := quietTLS(t, http.NotFoundHandler())
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, and never says a word
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, tt := range map[string]struct {
		url    string
		change func(*idp.Config)
	}{
		"an unknown authority": {untrusted.URL, nil},
		"no TLS at all":        {strings.Replace(plain.URL, "http:", "https:", 1), nil},
		"a silent server": {
			"https://" + silent.Addr().String(),
			func(c *idp.Config) { c.Timeout = 50 * time.Millisecond },
		},
	} {
		if f := fault(t, open(t, tt.url, tt.change)); f.Class != grant.Unsent || f.Err == nil {
			t.Errorf("%s: %v", name, f)
		}
	}
	if f := fault(t, open(t, untrusted.URL, func(c *idp.Config) {
		c.RootCAs = pool
	})); f.Status != 404 {
		t.Errorf("with its own authority: %v", f)
	}
}

func TestCancelledCallNamesNoCause(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		cancel(errors.New("lease of " + canary))
		<-r.Context().Done()
	}))
	defer s.Close()
	_, err := open(t, s.URL, nil).Refresh(ctx, secret.New(canary))
	if f, ok := errors.AsType[*grant.Fault](err); !ok || f.Class != grant.Ambiguous ||
		!errors.Is(err, context.Canceled) || strings.Contains(err.Error(), canary) {
		t.Errorf("%v", err)
	}
}

// An answer that breaks off is ambiguous whatever its status began to say.
func TestBrokenAnswerIsAmbiguous(t *testing.T) {
	for _, status := range []int{200, 400} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			w.Header().Set("Content-Length", "500")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"error":"invalid_grant","x":"canary`))
		}))
		if f := fault(t, open(t, s.URL, nil)); f.Class != grant.Ambiguous || f.Status != status {
			t.Errorf("%d: %v", status, f)
		}
		s.Close()
	}
}

func TestProxyOnlyWhereSet(t *testing.T) {
	var through atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		through.Add(1)
		if r.Method != http.MethodConnect {
			t.Errorf("%s through the proxy", r.Method)
		}
		w.WriteHeader(http.StatusBadGateway)
	}))
	defer proxy.Close()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("https_proxy", proxy.URL)
	if f := fault(t, open(t, "https://nowhere.invalid", nil)); f.Class != grant.Unsent ||
		through.Load() != 0 {
		t.Errorf("%v; %d times through the environment's proxy", f, through.Load())
	}
	if f := fault(t, open(t, "https://nowhere.invalid", func(c *idp.Config) {
		c.ProxyURL = secret.New(proxy.URL)
	})); f.Class != grant.Unsent || through.Load() != 1 {
		t.Errorf("%v; %d times through the proxy", f, through.Load())
	}
}

// What is recorded of a call: that it was made, where to and how it ended; never a token, a body or
// a query.
func TestTelemetry(t *testing.T) {
	s := answering(t, 400, nil, `{"error":"invalid_grant","error_description":"canary"}`)
	spans, reader := tracetest.NewInMemoryExporter(), sdkmetric.NewManualReader()
	tracers := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	p, err := idp.New(idp.Config{
		ID:                "p",
		BaseURL:           s.URL,
		ClientID:          "client",
		ClientSecret:      secret.New("canary-secret"),
		AllowHTTPLoopback: true,
	}, idp.Telemetry{Tracers: tracers, Meters: meters})
	if err != nil {
		t.Fatal(err)
	}
	if f := fault(t, p); f.Class != grant.Permanent {
		t.Error(f)
	}
	_, _ = p.UserInfo(t.Context(), secret.New(canary), "u")
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%+v %+v", spans.GetSpans(), metrics)
	if n := len(spans.GetSpans()); n != 2 || strings.Contains(all, "canary") {
		t.Errorf("%d spans, or a token in what is recorded: %s", n, all)
	}
	if !strings.Contains(all, "http.client.request.duration") {
		t.Error("no duration is recorded")
	}
	for _, span := range spans.GetSpans() {
		if !slices.Contains(span.Attributes, attribute.Int("http.response.status_code", 400)) {
			t.Errorf("span %s does not say the status: %v", span.Name, span.Attributes)
		}
	}
}
