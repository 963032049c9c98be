package webhook_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/secret"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/testkit/streams"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// BenchmarkHundredEndpoints takes each outcome to a hundred webhooks, all in this process with
// their receiver and the NATS server. One turn is one outcome. It reports deliveries a second.
func BenchmarkHundredEndpoints(b *testing.B) {
	const endpoints, users = 100, 100
	var came atomic.Int64
	all := make(chan struct{})
	at := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // what a receiver does with it is its own matter
		if came.Add(1) == int64(b.N*endpoints) {
			close(all)
		}
	}))
	defer at.Close()
	js, want := streams.Start(b, natsd.Config{}), streams.Wanted(b, "")
	for i := range endpoints {
		want.Sinks = append(want.Sinks, topology.Sink{Name: fmt.Sprint("s", i), InHand: 32})
	}
	streams.Ensure(b, js, want)
	engine := streams.Engine(b, js, stream.Config{})
	defer runSinks(b, js, engine, want, func(i int) (webhook.Config, sink.Config) {
		return webhook.Config{
			URL: fmt.Sprint(at.URL, "/s", i), Secrets: []secret.Value{secret.New(newSecret)},
			AllowPrivate: true, AllowHTTP: true,
		}, sink.Config{}
	})()
	b.ResetTimer()
	for i := range b.N {
		err := engine.Publish(b.Context(), schema.Event{
			ID: fmt.Sprint("e", i), Source: "/renewd", Type: schema.UserSynced,
			Provider: "propelauth", User: fmt.Sprint("u", i%users), Time: time.Now(),
			Data: []byte(`{}`),
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	<-all
	b.ReportMetric(float64(b.N*endpoints)/b.Elapsed().Seconds(), "deliveries/s")
}
