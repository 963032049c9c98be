package refresh

import (
	"context"
	"errors"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// Handle renews the grant of a due message. Its error is a verdict of package runner. nil means
// that the outcome and the next timer are stored, and the message may go.
func (c *Consumer) Handle(ctx context.Context, m *runner.Message) error {
	r, err := c.renewal(m)
	if err != nil {
		return runner.Reject(err)
	}
	err = r.run(ctx)
	if ownReason(err) == "" || !m.Held() {
		return err
	}
	// Trying again in a moment is no use, and would hold a place.
	if later := r.putOff(context.WithoutCancel(ctx), err); later != nil {
		return retry(errors.Join(err, later))
	}
	return nil
}

// renewal is a job on its way through the steps.
type renewal struct {
	job
	record   record
	outcomes outcomes
	timers   timers
	pairs    pairs
	calls    calls
	faults   faults

	loads int
	held  *claimed // the claim, once taken

	// Results of a step for a later step, beside the record.
	tokens  grant.Tokens  // from present for save
	fault   *grant.Fault  // of a failed call, for judge
	read    grant.Profile // from profile for keep
	unnamed unnamed       // why a login is rejected, for reject
	asked   bool          // from keep for publish: the message's own command is still to be done
}

func (c *Consumer) renewal(m *runner.Message) (*renewal, error) {
	j, err := c.job(m)
	if err != nil {
		return nil, err
	}
	r := &renewal{job: j}
	r.record = record{job: &r.job}
	r.outcomes = outcomes{job: &r.job, record: &r.record}
	r.timers = timers{&r.job, &r.record}
	r.pairs = pairs{job: &r.job, record: &r.record}
	r.calls, r.faults = calls{&r.job}, faults{&r.job}
	return r, nil
}

// step is one part of a renewal.
type step string

// The steps of a renewal that rotates, in their order. If another writer has changed the record,
// the next step is load.
const (
	load    step = "load"    // read the record, and choose the side to work on
	tell    step = "tell"    // publish the outcomes left over by earlier work
	decide  step = "decide"  // choose the next step, by the rules of internal/grant
	claim   step = "claim"   // take the grant for one presentation
	unpark  step = "unpark"  // store a pair waiting in the stream, instead of presenting
	present step = "present" // spend the refresh token
	save    step = "save"    // store the fresh pair
	profile step = "profile" // ask the provider for the user's profile
	keep    step = "keep"    // store the profile and the outcome
	publish step = "publish" // publish the outcome in the record, and set the next timer
	done    step = "done"
)

// The other ways on.
const (
	missing   step = "missing"   // there is no record: answer the command, or tell the loss
	supersede step = "supersede" // the refresh token is superseded: never present it
	signOut   step = "signout"   // the grant has no usable token left
	sleep     step = "sleep"     // let a grant rest until the next request for it
	end       step = "end"       // end a session that has lasted long enough
	judge     step = "judge"     // write down the meaning of a failed call
	reject    step = "reject"    // end a login whose user the provider did not name
	rearm     step = "rearm"     // set the next timer: all is told
	rest      step = "rest"      // let a grant that is not renewed rest
)

// run takes one step after another until the work is done. Even if ctx has ended meanwhile, the
// meaning of a failed call is written down and told.
func (r *renewal) run(ctx context.Context) (err error) {
	defer func() { r.held.release() }()
	handler, next, g := ctx, load, grant.Grant{}
	if r.m.Deliveries <= 1 && r.work.Cause.Type == schema.CauseTimer && r.work.Mark.Version > 0 &&
		r.provider.Policy.ProfileEvery == 0 {
		// The timer was set for the time tokens are due, so the claim will most likely be wanted.
		// The claim loads the record too.
		next = claim
	}
	for next != done && err == nil {
		switch next {
		case load:
			ctx = handler
		case judge:
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(context.WithoutCancel(handler), 10*time.Second)
			defer cancel()
		}
		next, err = r.do(ctx, next, &g)
	}
	return err
}

// do takes a step with the record, on the side being worked on, and returns the next step. g
// becomes the record after the step. The zero Grant is a record not loaded yet.
func (r *renewal) do(ctx context.Context, s step, g *grant.Grant) (next step, err error) {
	switch s {
	case load:
		return r.load(ctx, g)
	case missing:
		return done, r.outcomes.missing(ctx)
	case tell:
		return r.tell(ctx, g)
	case decide:
		return r.decide(ctx, g)
	case supersede:
		return r.supersede(ctx, g)
	case signOut:
		return r.signOut(ctx, g)
	case sleep:
		return r.sleep(ctx, g)
	case end:
		return r.end(ctx, g)
	case claim:
		return r.claim(ctx, g)
	case unpark:
		return r.unpark(ctx, g)
	case present:
		return r.present(ctx, g)
	case save:
		return r.save(ctx, g)
	case profile:
		return r.profile(ctx, g)
	case keep:
		return r.keep(ctx, g)
	case judge:
		return r.judge(ctx, g)
	case reject:
		return r.reject(ctx, g)
	case publish:
		return r.publish(ctx, g)
	case rearm:
		ok, err := r.timers.arm(ctx, g, true)
		return either(ok, done), err
	case rest:
		return done, r.record.rest(ctx, g)
	}
	return done, nil
}
