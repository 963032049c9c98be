package refresh

import (
	"context"

	"github.com/renewd/renewd/internal/grant"
)

// publish publishes the outcome in the record, if any, and then sets the next timer. The server
// acknowledges both. In this order a timer proves that the outcome is published. publish may run
// again for the same work after a crash: the outcome's id and the timer's cause are the same then.
func (r *renewal) publish(ctx context.Context, g *grant.Grant) (step, error) {
	if ok, err := r.outcomes.tell(ctx, g); !ok || err != nil {
		return load, err
	}
	if ok, err := r.outcomes.tellOwn(ctx, g); !ok || err != nil {
		return load, err
	}
	if err := r.record.rest(ctx, g); err != nil {
		return done, err
	}
	if ok, err := r.timers.arm(ctx, g, g.Pending != nil); !ok || err != nil {
		return load, err
	}
	r.meters.finished(ctx, r.work, g, r.Now())
	if r.asked {
		return load, nil
	}
	return done, nil
}
