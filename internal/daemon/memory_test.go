package daemon

import (
	"log/slog"
	"math"
	"runtime/debug"
	"testing"
)

func TestCollectLess(t *testing.T) { // not parallel: there is one heap
	before, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() { debug.SetGCPercent(before); debug.SetMemoryLimit(limit) })
	for _, c := range []struct {
		embedded  bool
		was, want int
	}{
		{false, 100, workerGC}, {true, 100, serverGC}, {false, 50, 50}, {true, -1, -1},
	} {
		debug.SetGCPercent(c.was)
		collectLess(c.embedded, slog.New(slog.DiscardHandler))
		if got := debug.SetGCPercent(100); got != c.want {
			t.Errorf("embedded %v, from GOGC=%d: %d, want %d", c.embedded, c.was, got, c.want)
		}
	}
}

func TestAMemoryLimitOfItsUserStands(t *testing.T) { // not parallel: there is one heap
	before, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(math.MaxInt64)
	t.Cleanup(func() { debug.SetGCPercent(before); debug.SetMemoryLimit(limit) })
	t.Setenv("GOMEMLIMIT", "3GiB")
	debug.SetMemoryLimit(3 << 30)
	collectLess(false, slog.New(slog.DiscardHandler))
	if got := debug.SetMemoryLimit(-1); got != 3<<30 {
		t.Errorf("the limit is %d, want what GOMEMLIMIT says", got)
	}
}
