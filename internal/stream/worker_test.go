package stream_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/renewd/renewd/internal/natsd"
	"github.com/renewd/renewd/internal/stream"
	"github.com/renewd/renewd/internal/topology"
)

// A worker that announces nothing any more is gone after a while, and its announcement is removed
// in time.
func TestWorkersThatSayNothingAreForgotten(t *testing.T) {
	js := start(t, natsd.Config{})
	ensure(t, js, wanted(t, ""))
	var ahead atomic.Int64
	wall := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	clock := stream.Clock{Wall: wall, Mono: func() time.Duration { return 0 }}
	e := engine(t, js, stream.Config{Clock: clock})
	announce := func(id string) (leave func()) {
		ctx, stop := context.WithCancel(t.Context())
		changed, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			keys := func() (opens, seals []string) { return []string{"k1", "k2"}, []string{"k2"} }
			ended <- e.Announce(ctx, stream.Worker{ID: id, Host: "host-" + id}, keys, changed,
				func(err error) { t.Error(err) })
		}()
		changed <- struct{}{} // what was said first is stored by now
		return func() {
			stop()
			must(t, <-ended)
		}
	}
	there := func() (ids []string) {
		t.Helper()
		workers, err := e.Workers(t.Context())
		must(t, err)
		for _, w := range workers {
			ids = append(ids, w.ID)
			if fmt.Sprint(w.Keys, w.Seals) != "[k1 k2] [k2]" {
				t.Errorf("%s has %q and seals with %q", w.ID, w.Keys, w.Seals)
			}
		}
		return ids
	}
	kept := func() (n int) {
		t.Helper()
		kv, err := js.KeyValue(t.Context(), topology.BucketProviders)
		must(t, err)
		keys, err := kv.ListKeysFiltered(t.Context(), "worker.*")
		must(t, err)
		for range keys.Keys() {
			n++
		}
		return n
	}
	leave := announce("a")
	announce("killed") // it is not withdrawn while this test looks
	if got := fmt.Sprint(there()); got != "[a killed]" {
		t.Errorf("got %s", got)
	}
	leave()
	if got := fmt.Sprint(there()); got != "[killed]" || kept() != 1 {
		t.Errorf("after one has left: %s, %d kept", got, kept())
	}
	ahead.Store(int64(3 * time.Minute))
	if got := fmt.Sprint(there()); got != "[]" || kept() != 1 {
		t.Errorf("after three silent minutes: %s, %d kept", got, kept())
	}
	ahead.Store(int64(2 * time.Hour))
	if got := fmt.Sprint(there()); got != "[]" || kept() != 0 {
		t.Errorf("after two silent hours: %s, %d kept", got, kept())
	}
}
