package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// PutOff has work that failed again and again done later, by a timer with backoff, so that the work
// holds no place meanwhile. If the failure is the grant's own and stays, the sender of the command
// is told the reason once. PutOff has the signature of runner.Config.PutOff.
func (c *Consumer) PutOff(ctx context.Context, m *runner.Message, cause error) error {
	r, err := c.renewal(m)
	if err != nil {
		return err
	}
	return r.putOff(ctx, cause)
}

func (r *renewal) putOff(ctx context.Context, cause error) error {
	r.restart() // whichever side the work was on
	work, longest := r.given, deferMax
	reason := ownReason(cause)
	if reason != "" && work.Deferrals >= silent {
		longest = r.provider.Policy.RetryLater
		if work.Deferrals == silent {
			ok, err := r.outcomes.fail(ctx, grant.Mark{}, reason)
			if err != nil {
				return err
			}
			if !ok {
				return errChanged
			}
			work.Cause = grant.Deferred(r.key, work.Cause)
		}
	}
	wait := min(r.provider.Policy.RetryMin<<min(work.Deferrals, 20), longest)
	work.Deferrals++
	work.Again = true
	r.Logger.Warn("renewal put off",
		"grant", r.key, "deferrals", work.Deferrals, "wait", wait, "error", cause)
	return r.Timers.Arm(ctx, r.key, r.Now().Add(wait), work)
}

// silent is how often work is put off before the failure is told. While keys are rotated, another
// worker, or the same worker a little later, may have the missing key.
const silent = 3

// deferMax is the longest wait for a failure that is not the grant's: a store that is away, a claim
// of another worker.
const deferMax = 30 * time.Second

// ownReason is the reason of user.refresh_failed for a failure of this grant, empty for any other
// failure.
func ownReason(err error) string {
	switch {
	case errors.Is(err, grant.ErrUnreadable):
		return schema.ReasonUnreadable
	case errors.Is(err, grant.ErrRefused):
		return schema.ReasonRefused
	case errors.Is(err, runner.ErrPanicked):
		return schema.ReasonInternal
	}
	return ""
}
