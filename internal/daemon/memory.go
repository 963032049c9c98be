package daemon

import (
	"log/slog"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// How much the heap grows between two collections, in percent of the live heap. A worker's heap is
// small and nearly all of it is gone after a renewal, so that collecting at each doubling would
// cost a tenth of its processor time. Beside an embedded NATS server most of the heap is the
// server's index of every grant (docs/performance.md).
const (
	workerGC = 400
	serverGC = 200
)

// collectLess lets the heap grow by this much, unless GOGC says otherwise, and keeps it below nine
// tenths of the memory limit of the process's control group, unless GOMEMLIMIT is set. The
// collector then works more as the heap comes near to the limit.
func collectLess(embedded bool, log *slog.Logger) {
	const usual = 100
	percent := workerGC
	if embedded {
		percent = serverGC
	}
	if was := debug.SetGCPercent(percent); was != usual {
		debug.SetGCPercent(was)
	}
	if _, err := memlimit.Set(); err != nil {
		log.Debug("the heap has no limit", "error", err)
	}
}
