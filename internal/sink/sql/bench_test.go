package sql_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/schema"
)

// inFlight is for how many users a sink delivers at a time by default.
const inFlight = 128

// BenchmarkDeliver writes users' rows as a sink does: many at a time, with a token, a profile,
// flags and times. One turn is one row. It reports rows a second.
func BenchmarkDeliver(b *testing.B) {
	for name, config := range map[string]func(app) sql.Config{
		"columns": app.config, "organisations": app.joined,
	} {
		b.Run(name, func(b *testing.B) {
			apps(b, func(b *testing.B, a app) {
				a.do(b, pivot)
				a.do(b, "CREATE INDEX pivot_user ON organization_user (user_id)")
				const users = 5000
				s := &store{}
				for i := range users {
					a.do(b, fmt.Sprintf(
						"INSERT INTO users (id, propel_id, name) VALUES (%d, 'u%d', 'x')", i, i))
					s.put(live(b, fmt.Sprint("u", i), 1))
				}
				to := target(b, config(a), s)
				rows := make(chan int)
				var delivering sync.WaitGroup
				b.ResetTimer()
				for range inFlight {
					delivering.Go(func() {
						for i := range rows {
							e := event(fmt.Sprint("u", i%users), fmt.Sprint("e", i),
								schema.UserSynced)
							if err := to.Deliver(context.Background(), e); err != nil {
								b.Error(err)
							}
						}
					})
				}
				for i := range b.N {
					rows <- i
				}
				close(rows)
				delivering.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "rows/s")
			})
		})
	}
}
