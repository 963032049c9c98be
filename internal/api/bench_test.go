package api_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkToken reads tokens that need no renewal, over keep-alive connections, with the callers
// in the same process. The store is memory: what is measured is HTTP and what this package adds.
func BenchmarkToken(b *testing.B) {
	w := newWorld(b, nil)
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var mu sync.Mutex
	var took []time.Duration
	b.SetParallelism(4)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		var own []time.Duration
		for pb.Next() {
			began := time.Now()
			r, _ := http.NewRequest(http.MethodGet, w.server.URL+"/v1/users/acme/u/token", nil)
			r.Header.Set("Authorization", "Bearer "+w.secrets["tokens"])
			answer, err := client.Do(r)
			if err != nil || answer.StatusCode != http.StatusOK {
				b.Errorf("%v %v", answer, err)
				return
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			own = append(own, time.Since(began))
		}
		mu.Lock()
		defer mu.Unlock()
		took = append(took, own...)
	})
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(len(took))/b.Elapsed().Seconds(), "reads/s")
	b.ReportMetric(float64(took[len(took)*99/100])/float64(time.Millisecond), "p99-ms")
}

// BenchmarkListeners opens idle event streams and says what each costs the process, its half of the
// connection included. The other halves are bare connections that read nothing.
func BenchmarkListeners(b *testing.B) {
	const listeners = 5000
	w := newWorld(b, nil)
	w.listen(b, b.Context(), "all", "", "") // the end of the stream is known
	for b.Loop() {
		before := inUse()
		ctx, leave := context.WithCancel(b.Context())
		all := make([]net.Conn, 0, listeners)
		for range listeners {
			all = append(all, w.bareListener(ctx, b))
		}
		b.ReportMetric(float64(inUse()-before)/listeners/1024, "KiB/listener")
		for _, c := range all {
			_ = c.Close()
		}
		leave()
	}
}

// inUse is the memory of heap and stacks, after a collection.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// bareListener opens an event stream without an HTTP client, and reads the head of its answer.
func (w *world) bareListener(ctx context.Context, b *testing.B) net.Conn {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", w.server.Listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	request := "GET /v1/outcomes HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n" +
		"Authorization: Bearer " + w.secrets["all"] + "\r\n\r\n"
	if _, err := io.WriteString(c, request); err != nil {
		b.Fatal(err)
	}
	head := make([]byte, 512)
	if n, err := c.Read(head); err != nil || string(head[:15]) != "HTTP/1.1 200 OK" {
		b.Fatalf("%s %v", head[:n], err)
	}
	return c
}
