package refresh

import (
	"context"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// outcomes publishes each outcome once. If a method returns ok false without an error, nothing was
// published, and the record must be loaded again.
type outcomes struct {
	*job
	record  *record
	resumed bool     // an earlier delivery of this work left its outcome in the record
	met     bool     // an earlier delivery had the pair, and may have published an outcome
	out     []string // ids of job.told that this job has published or looked for
}

// publish stores an outcome once. The stream drops a second outcome of the same id within its
// duplicate window. Outside the window publish looks at the user's last outcomes: for a redelivery,
// for an old message, and for work that was put off or met before. publish also looks for a
// sender's command that was stored before this worker started, since an earlier version may have
// answered the command under another id.
//
// A worker that has lost the lease publishes nothing. By then another worker has the message, and
// finds the outcome in the record or makes the outcome again. Or the user may be erased by then.
func (o *outcomes) publish(ctx context.Context, e schema.Event, m grant.Mark) (ok bool, _ error) {
	old := !o.m.Time.IsZero() && o.Now().Sub(o.m.Time) > grant.Recent
	before := o.given.Cause.Sender != "" && o.m.Time.Before(o.since.Add(grant.Recent))
	if o.m.Deliveries > 1 || o.resumed || o.met || old || before || o.given.Again {
		answered, err := o.answered(ctx, e.ID)
		if err != nil {
			return false, retry(err)
		}
		if answered {
			return true, nil
		}
	}
	if ok, err := o.record.stillThere(ctx); !ok || err != nil {
		return false, err
	}
	if !o.m.Held() {
		return false, retry(runner.ErrLeaseLost)
	}
	if err := o.Outcomes.PublishMarked(ctx, e, m); err != nil {
		return false, retry(err)
	}
	return true, nil
}

// answered reports whether an outcome is stored. Later outcomes may have followed the outcome of a
// command that was put off, of a command whose name a login's wake has, and of work met before.
func (o *outcomes) answered(ctx context.Context, id string) (bool, error) {
	if !grant.IsCommand(o.given.Cause) && !o.met {
		return o.Outcomes.Answered(ctx, o.key, id)
	}
	return o.Outcomes.AnsweredSince(ctx, o.key, id, grant.SentSince(o.given.Cause, o.Now()))
}

// answer says why a command cannot be done. A timer has no sender to answer.
func (o *outcomes) answer(ctx context.Context, m grant.Mark, reason string) (ok bool, _ error) {
	if !grant.IsCommand(o.work.Cause) {
		return true, nil
	}
	if err := o.noLoginWaits(ctx); err != nil {
		return false, err
	}
	return o.fail(ctx, m, reason)
}

// fail publishes a user.refresh_failed that is not stored in the record.
func (o *outcomes) fail(ctx context.Context, m grant.Mark, reason string) (ok bool, _ error) {
	return o.publish(ctx, grant.Answer(o.key, o.turn(), m.Version, reason, o.Source), m)
}

// tell publishes the outcomes that were decided for earlier causes and perhaps never published.
// tell comes before all else that is published of the grant, because an outcome whose mark is as
// new as another outcome's, or newer, proves that the other outcome is published.
func (o *outcomes) tell(ctx context.Context, g *grant.Grant) (ok bool, _ error) {
	o.noteTold(g)
	untold := g.Untold(o.work.Cause, o.told)
	if len(untold) == 0 {
		return true, nil
	}
	published, err := o.Outcomes.Published(ctx, o.key)
	if err != nil {
		return false, retry(err)
	}
	for _, p := range untold {
		out := p.Version > 0 && published.Version >= p.Version // 0: records had no version then
		if !out {
			// Told before, and decided again when the message came again.
			if out, err = o.Outcomes.Answered(ctx, o.key, p.ID); err != nil {
				return false, retry(err)
			}
		}
		if !out {
			e := g.Told(p, o.Source, o.Now(), o.provider.Policy.Shown)
			ok, err := o.publish(ctx, e, grant.Mark{Version: p.Version, Token: g.Mark().Token})
			if !ok || err != nil {
				return false, err
			}
		}
		o.told, o.out = append(o.told, p.ID), append(o.out, p.ID)
	}
	return true, nil
}

// tellOwn publishes the outcome of this work that g holds, if any.
func (o *outcomes) tellOwn(ctx context.Context, g *grant.Grant) (ok bool, _ error) {
	out, err := o.alreadyOut(ctx, g)
	if err != nil {
		return false, err
	}
	if out || g.Pending == nil || slices.Contains(o.out, g.Pending.ID) {
		return true, nil
	}
	return o.publish(ctx, g.Event(o.Source, o.Now(), o.provider.Policy.Shown), g.Mark())
}

// alreadyOut reports whether an earlier delivery published the outcome that it left in the record.
func (o *outcomes) alreadyOut(ctx context.Context, g *grant.Grant) (bool, error) {
	if !o.resumed || g.Pending == nil || g.Pending.Version == 0 {
		return false, nil
	}
	published, err := o.Outcomes.Published(ctx, o.key)
	if err != nil {
		return false, retry(err)
	}
	return published.Version >= g.Pending.Version, nil
}

// rejected reports whether the login of this work was rejected. Then the login has its answer, and
// only the next timer is missing, which the login's wake took away.
func (o *outcomes) rejected(ctx context.Context, g *grant.Grant) (bool, error) {
	cause := o.given.Cause
	if cause.Type != schema.UserLogin {
		return false, nil
	}
	if stored := g.AsStored(); stored.Awaits(cause) {
		return false, nil
	}
	rejected, err := o.Outcomes.Answered(ctx, o.key, grant.RejectionID(o.key, cause))
	if err != nil {
		return false, retry(err)
	}
	return rejected, nil
}

// unanswered reports whether the command of this work is still to be done after next is told. next
// tells that a login was proven. The command is still to be done if next is no answer to the
// command and no answer came before. Only before the proof is told can this be seen.
func (o *outcomes) unanswered(ctx context.Context, next *grant.Grant) (bool, error) {
	command := o.given.Cause
	if !grant.IsCommand(command) || grant.SameCause(command, next.Cause) {
		return false, nil
	}
	answered, err := o.answered(ctx, grant.OutcomeID(o.key, command))
	if err != nil {
		return false, retry(err)
	}
	return !answered, nil
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
