package sink

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/schema"
)

// Target is where a sink takes its outcomes.
type Target interface {
	// Deliver hands over one outcome, and returns nil once the receiver has stored it for good.
	// Outcomes may come again, also after a nil: a receiver tells them apart by their id. An error
	// other than a *Fault counts as Unclear, but for ErrWithheld. The error's text is stored and
	// shown, so it holds no token, no secret and nothing of the outcome. Deliver returns soon after
	// ctx ends, and in a minute at most. Deliver is safe for concurrent use.
	Deliver(ctx context.Context, e schema.Event) error
	// Close gives up what the target holds, once no Deliver is under way.
	Close()
}

// Once is a Target that is to get each outcome once, over redeliveries and replays too, as far as
// possible: a delivery whose end could not be stored comes again. An outcome of a user that is not
// newer than the last taken is passed over.
type Once interface {
	// Version orders the outcomes of one user. An outcome of version 0 is always delivered.
	Version(e schema.Event) int64
}

// Blame is where the fault of a failed delivery lies.
type Blame string

const (
	// Unclear: this outcome, or the target. If outcomes of several users fail in a row, the target.
	Unclear Blame = "unclear"
	// Unreachable: the target, surely. All outcomes wait.
	Unreachable Blame = "unreachable"
	// Refused: this outcome, surely. The target works.
	Refused Blame = "refused"
	// Throttled: the target says when it wants to be asked again.
	Throttled Blame = "throttled"
	// Gone: the target wants no outcome any more. The sink is disabled.
	Gone Blame = "gone"
	// withheld: no failure. The target works, and is not to be asked again.
	withheld Blame = "withheld"
)

// ErrWithheld is returned by Deliver for an outcome that the target keeps from its receiver for
// good: a mail above the cap, say. The outcome is done, and nothing proves that the receiver knows.
var ErrWithheld = errors.New("held back")

// Fault is why an outcome was not delivered.
type Fault struct {
	Blame Blame
	After time.Duration // with Throttled: not before
	Err   error
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

// done reports whether an outcome is not tried again: it was delivered, or is withheld.
func (f *Fault) done() bool { return f == nil || f.Blame == withheld }

// faultOf is err as a Fault; nil for nil.
func faultOf(err error) *Fault {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrWithheld):
		return &Fault{Blame: withheld, Err: ErrWithheld}
	}
	if f, ok := errors.AsType[*Fault](err); ok {
		return f
	}
	return &Fault{Blame: Unclear, Err: err}
}

// Schedule is how long after a failure an outcome is tried again: that of Standard Webhooks 1.0.0.
// After the last of these tries it becomes a dead letter.
func Schedule() []time.Duration {
	return []time.Duration{
		5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
		10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
	}
}

// spread is d with up to a tenth more, so that simultaneous failures do not come back together.
func spread(d time.Duration, draw float64) time.Duration {
	return d + time.Duration(draw*float64(d)/10)
}

// total is how long the schedule lasts.
func total(schedule []time.Duration) (sum time.Duration) {
	for _, d := range schedule {
		sum += d
	}
	return sum
}
