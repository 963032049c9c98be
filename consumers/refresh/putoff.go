package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// PutOff has work that failed again and again done later, so that it holds no place meanwhile: a
// timer with backoff. Where the failure is the grant's own and stays, whoever asked is told once
// why. Its signature is that of consumers.Config.PutOff.
func (c *Consumer) PutOff(ctx context.Context, m *consumers.Message, cause error) error {
	t, err := c.task(m)
	if err != nil {
		return err
	}
	return t.putOff(ctx, cause)
}

func (t *task) putOff(ctx context.Context, cause error) error {
	t.work = t.given // on whichever side it was
	work, longest := t.given, deferMax
	reason := ownReason(cause)
	if reason != "" && work.Deferrals >= silent {
		longest = t.provider.Policy.RetryLater
		if work.Deferrals == silent {
			if err := t.fail(ctx, grant.Mark{}, reason); err != nil {
				return err
			}
			work.Cause = grant.Deferred(t.key, work.Cause)
		}
	}
	wait := min(t.provider.Policy.RetryMin<<min(work.Deferrals, 20), longest)
	work.Deferrals++
	work.Again = true
	t.Logger.Warn("renewal put off", "grant", t.key, "deferrals", work.Deferrals, "wait", wait, "error", cause)
	return t.Stream.Arm(ctx, t.key, t.Stream.Now().Add(wait), work)
}

// silent is how often work is put off before anybody is told: while keys are rotated, another
// worker, or the same one a little later, may have the one that is missing.
const silent = 3

// deferMax is the longest wait for what is nobody's own failure: a store that is away, a claim that
// somebody holds.
const deferMax = 30 * time.Second

// ownReason is the reason of user.refresh_failed for a failure which is this grant's own, empty for
// any other.
func ownReason(err error) string {
	switch {
	case errors.Is(err, grant.ErrUnreadable):
		return schema.ReasonUnreadable
	case errors.Is(err, grant.ErrRefused):
		return schema.ReasonRefused
	case errors.Is(err, consumers.ErrPanicked):
		return schema.ReasonInternal
	}
	return ""
}
