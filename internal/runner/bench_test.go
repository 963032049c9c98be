package runner_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/runner"
)

// Messages through a runner that does nothing, each acknowledged and the answer awaited.
func BenchmarkRunner(b *testing.B) {
	w := newBench(b, 10*time.Second)
	for range b.N {
		if _, err := w.js.PublishAsync("work.u17", []byte("x")); err != nil {
			b.Fatal(err)
		}
	}
	<-w.js.PublishAsyncComplete()
	var all sync.WaitGroup
	all.Add(b.N)
	c := w.config(func(context.Context, *runner.Message) error { all.Done(); return nil })
	c.Slots = 256
	b.ReportAllocs()
	b.ResetTimer()
	stop := w.run(c)
	all.Wait()
	b.StopTimer()
	stop()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
