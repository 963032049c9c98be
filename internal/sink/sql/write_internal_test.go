package sql

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/renewd/renewd/internal/appdb"
	"github.com/renewd/renewd/internal/sink"
)

// A batch that is written row by row, and whose rows each take long, holds its place no longer than
// two batches. The rows that it did not reach are left for another, and one at least is reached.
func TestSplitBatchEndsInTime(t *testing.T) {
	refused := &sink.Fault{Blame: sink.Refused, Err: errors.New("too long for a column")}
	for name, takes := range map[string]time.Duration{
		"some": batchLimit * 2 / 5, "one": batchLimit * 3 / 2,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var batch []*job
				for range 200 {
					batch = append(batch, &job{done: make(chan error, 1)})
				}
				began := time.Now()
				settle(batch, func(ctx context.Context, part []*job) (map[*job]error, error) {
					if len(part) > 1 {
						return nil, refused
					}
					select {
					case <-time.After(takes):
						return nil, refused
					case <-ctx.Done():
						return nil, errors.New("the database took too long")
					}
				})
				if took := time.Since(began); took > 2*batchLimit {
					t.Errorf("the batch held its place for %v", took)
				}
				var reached, left int
				for _, j := range batch {
					if err := <-j.done; errors.Is(err, errLeft) {
						left++
					} else if err != nil {
						reached++
					}
				}
				if want := max(1, int(batchLimit/takes)); reached != want || reached+left != 200 {
					t.Errorf("%d rows were tried, and %d are left, want %d tried", reached, left,
						want)
				}
			})
		})
	}
}

// A row that waits for one that somebody holds keeps no other of its batch from being written.
func TestWhatOneRowWaitsForHoldsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var batch []*job
		for range 200 {
			batch = append(batch, &job{done: make(chan error, 1)})
		}
		held := batch[70]
		busy := faultOf(nil, &appdb.Fault{Cause: appdb.Unclear, Err: errors.New("it is locked")})
		settle(batch, func(_ context.Context, part []*job) (map[*job]error, error) {
			if slices.Contains(part, held) {
				return nil, busy
			}
			return nil, nil
		})
		for i, j := range batch {
			if err := <-j.done; (err != nil) != (j == held) {
				t.Errorf("row %d: %v", i, err)
			}
		}
	})
}
