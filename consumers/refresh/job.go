package refresh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nuid"
	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// job is the work of one message by one worker: the part that all steps have in common.
type job struct {
	*Consumer
	m        *runner.Message
	key      grant.Key
	provider *Provider
	nonce    string // unique for each job, also of its claims
	began    time.Time

	given grant.Work // as in the message
	// work is given as done now: on one side of the record, with all that was learnt on the way.
	// Only choose, learn, refused and restart change work.
	work grant.Work
	told []string // ids of outcomes known to be published
	// parkedParent is the fingerprint of the refresh token whose side has a parked pair. This side
	// comes first, since all sides share one place for a pair. Empty: no side has a parked pair.
	parkedParent string
}

func (c *Consumer) job(m *runner.Message) (job, error) {
	key, work, err := c.Parse(m.Subject, m.Header)
	if err != nil {
		return job{}, err
	}
	p, ok := c.providers[key.Provider]
	if !ok {
		return job{}, &schema.Malformed{
			Reason: schema.RejectUnknownProvider, Field: "provider",
			Message: fmt.Sprintf("%q is not among the providers in renewd's settings",
				key.Provider),
		}
	}
	return job{
		Consumer: c, m: m, key: key, provider: p, nonce: nuid.Next(), began: c.Now(),
		given: work, work: work,
	}, nil
}

// turn is the common part of all changes of the record made now.
func (j *job) turn() grant.Turn {
	return grant.Turn{
		Work: j.work, Nonce: j.nonce, BeganAt: j.began, Now: j.Now(), Draw: j.Rand(),
		Policy: &j.provider.Policy, Told: j.told,
	}
}

// choose turns a stored record to the side to work on now, and the work with the record.
func (j *job) choose(stored grant.Grant) (g grant.Grant) {
	work := j.given
	work.Cause = stored.TimerOf(work)
	work.Mark, work.Refused = j.work.Mark, j.work.Refused
	if holder, ok := stored.Holder(j.parkedParent); ok {
		g, j.work = holder.Only(work, j.Now())
	} else {
		g, j.work = stored.Turned(work, &j.provider.Policy, j.Now())
	}
	if g.OnCandidate() && g.Login.Time.After(j.began) {
		j.began = j.Now() // the login came after the message, so the login's work begins now
	}
	return g
}

// learn tells the work the latest mark of the record.
func (j *job) learn(m grant.Mark) { j.work.Mark = j.work.Mark.Newest(m) }

// refused tells the work that the provider did not take g's access token.
func (j *job) refused(g *grant.Grant) { j.work.Refused = g.Pair.Access.Fingerprint() }

// restart sets the work back to the work in the message.
func (j *job) restart() { j.work = j.given }

// decision is the step that the rules want for g now.
func (j *job) decision(g *grant.Grant) grant.Step {
	return grant.Decide(g, j.work, &j.provider.Policy, j.Now())
}

// noteTold notes that the record's outcome is published if the message's mark proves so. The mark
// comes from a timer, which was set after the outcome of the same state was published. The outcome
// of a record that rests is published as well: see record.rest.
func (j *job) noteTold(g *grant.Grant) {
	if g.Pending == nil {
		return
	}
	decided := g.Pending.Version
	if decided == 0 {
		decided = g.Version
	}
	if g.Resting() || j.given.Mark.Version >= decided {
		j.told = append(j.told, g.Pending.ID)
	}
}

var errLoginWaits = errors.New("a newer login of this user is about to be stored")

// noLoginWaits is an error while a login of the user waits to be stored: nothing may be told that
// the login would make untrue.
func (j *job) noLoginWaits(ctx context.Context) error {
	waits, err := j.Logins.LoginWaits(ctx, j.key)
	if waits {
		err = errLoginWaits
	}
	if err != nil {
		return retry(err)
	}
	return nil
}

// retry is the verdict for work that may succeed in a moment.
func retry(err error) error { return runner.Retry(err, time.Second) }
