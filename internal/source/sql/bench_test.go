package sql_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fill writes so many rows, changed long ago, with tokens.
func (w *world) fill(rows int) {
	w.Helper()
	const batch = 5000
	for from := 0; from < rows; from += batch {
		var values []string
		for i := from; i < min(from+batch, rows); i++ {
			values = append(values, fmt.Sprintf("(%d, 'u%d', 'at-%[1]d', 'rt-%[1]d', "+
				"'2026-01-02 03:04:05', '2026-01-02 03:04:05')", i, i))
		}
		w.do("INSERT INTO users (id, propel_id, propel_access_token, propel_refresh_token, "+
			"last_login_at, updated_at) VALUES %s", strings.Join(values, ", "))
	}
}

// BenchmarkImport imports a table as fast as that goes. One turn is one row, and it reports rows a
// second: of an import, and of a look that publishes nothing.
func BenchmarkImport(b *testing.B) {
	both(b, func(w *world) {
		b := w.TB.(*testing.B)
		w.fill(b.N)
		s, _ := w.source()
		b.ResetTimer()
		if _, err := s.Look(w.Context(), false, nil); err != nil {
			b.Fatal(err)
		}
		looked := b.Elapsed()
		b.ReportMetric(float64(b.N)/looked.Seconds(), "looked/s")
		if _, err := s.Import(w.Context(), false, nil, nil); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(b.N)/(b.Elapsed()-looked).Seconds(), "imported/s")
	})
}

// BenchmarkWatch watches a table of a million rows in which nothing changes, as the settings have
// it by default, for ten seconds each turn. It reports the share of a core that this process takes.
func BenchmarkWatch(b *testing.B) {
	both(b, func(w *world) {
		b := w.TB.(*testing.B)
		w.fill(1_000_000)
		for i := range 10 {
			w.do("UPDATE users SET updated_at = '%s' WHERE id = %d",
				time.Now().UTC().Format(time.DateTime), i)
		}
		w.config.Poll = time.Second
		// An import that has begun is enough for the watch.
		s, _ := w.source()
		enough := errors.New("enough")
		_, err := s.Import(w.Context(), false, func(context.Context) error { return enough }, nil)
		if !errors.Is(err, enough) {
			b.Fatal(err)
		}
		w.watch()
		b.ResetTimer()
		before := processorTime(b)
		for range b.N {
			<-time.After(10 * time.Second)
		}
		b.ReportMetric(100*(processorTime(b)-before).Seconds()/b.Elapsed().Seconds(), "%core")
	})
}

// processorTime is what this process has used, the embedded NATS server included.
func processorTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
