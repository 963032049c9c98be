package sink

import (
	"context"
	"errors"
	"testing"

	"github.com/renewd/renewd/internal/lease"
	"github.com/renewd/renewd/schema"
)

// none is a target that must get nothing.
type none struct{ t *testing.T }

func (n none) Deliver(context.Context, schema.Event) error {
	n.t.Error("an outcome is delivered without the lease")
	return nil
}

func (none) Close() {}

// Once the lease is over the next process has read the ledger: an entry written after that, or an
// outcome delivered, would have that user's outcomes overtake each other.
func TestNothingIsWrittenWithoutTheLease(t *testing.T) {
	over, lose := context.WithCancelCause(t.Context())
	lose(lease.ErrLost)
	r := &run{Sink: &Sink{Config: Config{Target: none{t}}}, lease: over}
	err := r.enter(t.Context(), func(context.Context) error {
		t.Error("the ledger is written without the lease")
		return nil
	})
	if !errors.Is(err, lease.ErrLost) {
		t.Error(err)
	}
	if err := r.try(t.Context(), schema.Event{}); !errors.Is(err, lease.ErrLost) {
		t.Error(err)
	}
}
