package sink

import (
	"context"
	"errors"
	"math"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/bucket"
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// run is one run of a sink, between two stops.
type run struct {
	*Sink
	ledger  *ledger
	breaker *breaker
	line    *line
	slots   chan struct{} // a token for each delivery under way
	figures *figures
	quit    context.Context // ends when the run is told to stop; deliveries go on for a while
	lease   context.Context // ends when another process may run the sink; no delivery goes on
	over    chan struct{}   // closed when all has stopped
	halting atomic.Bool     // a delivery has the sink disabled
}

// begin starts a run of the durable in its present state. stop orders the run's end, and over is
// closed once the run has ended.
func (s *Sink) begin(ctx, lease context.Context, f *figures, now *jetstream.ConsumerInfo) (*run,
	context.CancelFunc, error) {
	quit, stop := context.WithCancel(ctx)
	r := &run{
		Sink: s, ledger: f.ledger, breaker: f.breaker, figures: f,
		line:  newLine(now.Delivered.Consumer, now.NumAckPending),
		slots: make(chan struct{}, s.Concurrency), quit: quit, lease: lease,
		over: make(chan struct{}),
	}
	f.line.Store(r.line)
	takes, err := runner.New(runner.Config{
		JetStream: s.JetStream, Stream: s.Stream, Durable: s.Durable.Durable, Template: "sink",
		Handler: r.handle, Taken: r.taken, Slots: s.Durable.MaxAckPending, Beat: 8 * time.Second,
		Drain: s.Drain, Logger: s.Logger, Tracer: s.Tracer,
		Looked: f.looked, Missing: s.make,
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := takes.Run(quit); err != nil {
			s.Logger.Error("the sink takes no outcomes", "error", err)
		}
	})
	parts.Go(func() { r.retries(quit) })
	parts.Go(func() { r.gather(quit) })
	go func() {
		parts.Wait()
		close(r.over)
	}()
	return r, stop, nil
}

// placeOf is the user in whose order a message is, by the subject, whatever the outcome says.
func placeOf(subjects schema.Subjects, subject string) string {
	a, err := subjects.Parse(subject)
	if err != nil {
		return subject
	}
	return about(schema.Event{Provider: a.Provider, User: a.User})
}

const (
	// gatherEvery is how often gather asks the server whether all delivered messages are in the
	// line.
	gatherEvery = 500 * time.Millisecond
	// gatherLimit is how long gather waits for missing messages. A message comes again AckWait
	// after the server last began to count, and a restarted server begins again.
	gatherLimit = 5 * time.Minute
)

// gather has the line go on once all missing messages have come again, until quit ends.
func (r *run) gather(quit context.Context) {
	for {
		select {
		case <-quit.Done():
			return
		case <-r.line.waits:
		}
		tick := time.NewTicker(gatherEvery)
		for since := time.Now(); r.line.awaits() && quit.Err() == nil; {
			r.look(quit)
			if time.Since(since) > gatherLimit {
				r.Logger.Warn("outcomes that were delivered before did not come again: one " +
					"user's may be delivered out of order")
				r.line.open()
			}
			select {
			case <-quit.Done():
			case <-tick.C:
			}
		}
		tick.Stop()
	}
}

// look compares the line with the server's count of pending messages.
func (r *run) look(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, patience)
	defer done()
	before := r.line.roll()
	c, err := r.JetStream.Consumer(ctx, r.Stream, r.Durable.Durable)
	if err == nil {
		r.line.compare(before, c.CachedInfo().NumAckPending)
	}
}

func (r *run) taken(m *runner.Message) { r.line.join(placeOf(r.Subjects, m.Subject), m) }

// handle brings one message to its end: delivered, or kept in the ledger. While the target as a
// whole is down, handle waits.
func (r *run) handle(ctx context.Context, m *runner.Message) (err error) {
	defer func() { r.line.leave(m, err == nil) }()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	defer context.AfterFunc(r.lease, func() { cut(context.Cause(r.lease)) })()
	waits, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(r.quit, func() { stop(runner.ErrShutdown) })()
	if err = r.line.wait(waits, m); err != nil {
		return runner.Retry(err, 0)
	}
	e, err := r.Subjects.Decode(m.Header, m.Data, schema.Arrival{
		Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time,
	})
	if err != nil {
		r.Logger.Warn("passed over a message that is no event", "subject", m.Subject, "sequence",
			m.Sequence, "error", err)
		return nil
	}
	behind := false
	err = r.enter(waits, func(ctx context.Context) (err error) {
		behind, err = r.ledger.behind(ctx, about(e), m.Sequence)
		return err
	})
	if behind || err != nil {
		return unless(err)
	}
	f, err := r.deliver(ctx, waits, e)
	switch {
	case err != nil:
		return runner.Retry(err, 0)
	case f.done():
		return unless(r.persist(waits, func(ctx context.Context) error {
			return r.delivered(ctx, e, m.Sequence, f != nil)
		}))
	}
	now := r.Now()
	return unless(r.enter(waits, func(ctx context.Context) error {
		return r.ledger.open(ctx, about(e), waiting{
			Sequences: []uint64{m.Sequence}, Stored: m.Time, Tries: 1, FailedAt: now,
			Next: now.Add(spread(r.Schedule[0], r.Rand())), Error: short(f),
		})
	}))
}

// unless is the verdict of a message that is done, unless there is an error.
func unless(err error) error {
	if err != nil {
		return runner.Retry(err, 0)
	}
	return nil
}

// ended is why nothing may be begun or written any more; nil: the lease and ctx last.
func (r *run) ended(ctx context.Context) error {
	if r.lease.Err() != nil {
		return context.Cause(r.lease)
	}
	return context.Cause(ctx)
}

// enter persists a change of the ledger, and begins none once the lease is over: the next process
// has read the ledger by then, and would not see an entry of this one.
func (r *run) enter(ctx context.Context, f func(context.Context) error) error {
	return r.persist(ctx, func(ctx context.Context) error {
		if err := r.ended(ctx); err != nil {
			return err
		}
		return f(ctx)
	})
}

// persist repeats a write that NATS must take, until the write succeeds, or ctx or the lease ends.
// Later work must not begin before: it would overtake.
func (r *run) persist(ctx context.Context, f func(context.Context) error) error {
	var wait pull.Backoff
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if r.ended(ctx) != nil {
			return err
		}
		if !wait.Waited() {
			r.Logger.Warn("the sink cannot keep its place, trying again", "error", err)
		}
		if wait.Wait(ctx); ctx.Err() != nil {
			return err
		}
	}
}

// deliver tries one outcome until it is delivered, or fails and may itself be at fault. waits is
// ctx, but ends at once when the run is told to stop. The error says that waits or ctx ended, or
// that the sink was disabled.
func (r *run) deliver(ctx, waits context.Context, e schema.Event) (*Fault, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-waits.Done():
		return nil, context.Cause(waits)
	}
	if known, err := r.known(waits, e); known || err != nil {
		return nil, err
	}
	for {
		if r.quit.Err() != nil { // waits ends a moment later
			return nil, runner.ErrShutdown
		}
		probe, err := r.breaker.enter(waits)
		if err != nil {
			return nil, err
		}
		f := faultOf(r.try(ctx, e))
		why := r.ended(ctx)
		stopped := f != nil && why != nil
		if since := r.breaker.leave(about(e), probe, f, stopped); !since.IsZero() {
			r.Logger.Info("the sink's target works again", "down_since", since)
			r.ledger.hurry(since.Add(-time.Minute))
		}
		if stopped {
			return nil, why
		}
		r.note(ctx, f)
		if f != nil && f.Blame == Gone {
			return nil, r.disable(ctx, waits, short(f))
		}
		if down, why := r.breaker.down(); !down.IsZero() && time.Since(down) > total(r.Schedule) {
			return nil, r.disable(ctx, waits,
				"down since "+down.UTC().Format(time.RFC3339)+": "+why)
		}
		if f.done() || f.Blame == Refused || f.Blame == Unclear {
			return f, nil
		}
	}
}

// try hands one outcome to the target. A panic is a failure of this outcome alone.
func (r *run) try(ctx context.Context, e schema.Event) (err error) {
	if err := r.ended(ctx); err != nil {
		return err
	}
	defer func() {
		if v := recover(); v != nil {
			r.Logger.Error("a delivery panicked", "type", e.Type, "id", e.ID, "stack",
				string(debug.Stack()))
			err = &Fault{Blame: Refused, Err: runner.ErrPanicked}
		}
	}()
	return r.Target.Deliver(ctx, e)
}

var errDisabled = errors.New("the sink was disabled")

// disable stops the sink until an operator resumes it, and returns once the stop has ended waits.
// Nothing is lost: undelivered outcomes stay in the stream. Of several deliveries the first stores
// and reports the stop.
func (r *run) disable(ctx, waits context.Context, why string) error {
	first := r.halting.CompareAndSwap(false, true)
	if first {
		if err := r.halt(ctx, why); err != nil {
			r.halting.Store(false)
			return err
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-waits.Done():
	case <-timer.C: // an operator resumed the sink before it stopped, say
		if first {
			r.halting.Store(false)
		}
	}
	return errDisabled
}

// halt stores that the sink is disabled, and reports the fact.
func (r *run) halt(ctx context.Context, why string) error {
	err := r.persist(ctx, func(ctx context.Context) error {
		return bucket.Set(ctx, r.bucket.kv, keyState+r.Name,
			State{State: Disabled, Reason: why, Since: r.Now().UTC()})
	})
	if err != nil {
		return err
	}
	r.Logger.Error("the sink is disabled: nothing is delivered until an operator resumes it",
		"why", why, "hint", "renewd sinks resume "+r.Name)
	if err := r.Acted(ctx, schema.ActSinksDisable); err != nil {
		r.Logger.Warn("that the sink is disabled could not be told", "error", err)
	}
	return nil
}

// known reports whether a target that wants each outcome once took e, or a newer outcome of the
// same user, already.
func (r *run) known(ctx context.Context, e schema.Event) (known bool, err error) {
	once, ok := r.Target.(Once)
	if !ok || once.Version(e) == 0 {
		return false, nil
	}
	err = r.persist(ctx, func(ctx context.Context) error {
		told, err := r.told(ctx, e)
		known = told.Value.Version >= once.Version(e)
		return err
	})
	return known, err
}

// told is the stored proof of a user. A damaged proof counts as missing.
func (r *run) told(ctx context.Context, e schema.Event) (bucket.Entry[Told], error) {
	told, err := bucket.Get[Told](ctx, r.bucket.kv, keyTold+r.Name+"."+about(e))
	if err != nil && told.Revision > 0 {
		told.Value, err = Told{}, nil
	}
	return told, err
}

// delivered keeps the proof of delivery: of each sign-out, and of each outcome for a target that
// wants outcomes once. held: the target keeps the outcome from its receiver.
func (r *run) delivered(ctx context.Context, e schema.Event, sequence uint64, held bool) error {
	once, isOnce := r.Target.(Once)
	signOut := e.Type == schema.UserSignedOut || e.Type == schema.UserReauthRequired
	if isOnce = isOnce && once.Version(e) > 0; !isOnce && !signOut {
		return nil
	}
	if e.Type == schema.UserForgotten {
		return nil // nothing names a user after an erasure
	}
	told := Told{
		ID: e.ID, Type: e.Type, Sequence: sequence, At: r.Now().UTC(), Withheld: held,
	}
	if isOnce {
		was, err := r.told(ctx, e)
		if err != nil {
			return err
		}
		if told.Version = once.Version(e); was.Value.Version >= told.Version {
			return nil // passed over
		}
	}
	key := keyTold + r.Name + "." + about(e)
	if err := bucket.Set(ctx, r.bucket.kv, key, told); err != nil {
		return err
	}
	return r.unlessErased(ctx, sequence, key)
}

// unlessErased removes the key just written for an outcome that is not stored any more. An erasure
// takes the outcomes first, and then the sinks' keys, so that either the erasure or this look comes
// after the write.
func (r *run) unlessErased(ctx context.Context, sequence uint64, key string) error {
	_, found, err := r.Read(ctx, sequence)
	if err != nil && !isMalformed(err) {
		return err
	}
	if found {
		return nil
	}
	return r.bucket.remove(ctx, key, math.MaxUint64-1)
}

// retries tries waiting outcomes, each when its time has come, until quit ends.
func (r *run) retries(quit context.Context) {
	var trying sync.WaitGroup
	defer trying.Wait()
	places := make(chan struct{}, r.Concurrency)
	for {
		select {
		case places <- struct{}{}:
		case <-quit.Done():
			return
		}
		a, next := r.ledger.due(r.Now())
		if a != nil && quit.Err() == nil {
			trying.Go(func() {
				defer func() { <-places }()
				defer r.ledger.release(a)
				r.retry(quit, a)
			})
			continue
		}
		<-places
		wait := time.Minute
		if !next.IsZero() {
			wait = min(max(next.Sub(r.Now()), 10*time.Millisecond), wait)
		}
		timer := time.NewTimer(wait)
		select {
		case <-quit.Done():
			timer.Stop()
			return
		case <-r.ledger.changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// retry tries the first outcome of an account, and then the outcomes behind it. Only a failure for
// which the outcome may be at fault has the rest wait on.
func (r *run) retry(quit context.Context, a *account) {
	// A delivery under way may end after the run was told to stop.
	ctx, stop := context.WithCancelCause(r.lease)
	defer stop(nil)
	drain := context.AfterFunc(quit, func() {
		time.AfterFunc(r.Drain, func() { stop(runner.ErrShutdown) })
	})
	defer drain()
	for more := true; more && quit.Err() == nil; {
		more = r.retryFirst(ctx, quit, a)
	}
}

// retryFirst tries the first outcome of an account, and reports whether the next is to be tried at
// once.
func (r *run) retryFirst(ctx, quit context.Context, a *account) (more bool) {
	sequence, tries := a.first()
	e, found, err := r.Read(quit, sequence)
	if err != nil && !isMalformed(err) {
		r.ledger.schedule(a, r.Now().Add(spread(patience, r.Rand())))
		return false
	}
	var f *Fault
	if found && err == nil {
		if f, err = r.deliver(ctx, quit, e); err != nil {
			return false
		}
		if f.done() {
			held := f != nil
			err = r.persist(quit, func(ctx context.Context) error {
				return r.delivered(ctx, e, sequence, held)
			})
			f = nil
		}
	}
	now := r.Now()
	if f != nil && tries < len(r.Schedule) {
		next := now.Add(spread(r.Schedule[tries], r.Rand()))
		_ = r.enter(quit, func(ctx context.Context) error {
			return r.ledger.failed(ctx, a, next, now, short(f))
		})
		return false
	}
	if f != nil {
		letter := Letter{
			Sequence: sequence, ID: e.ID, Type: e.Type, Provider: e.Provider, User: e.User,
			Tries: tries + 1, Error: short(f), At: now.UTC(),
		}
		err = r.enter(quit, func(ctx context.Context) error {
			if err := r.ledger.bury(ctx, about(e), letter); err != nil {
				return err
			}
			return r.unlessErased(ctx, sequence, r.ledger.letterKey(about(e), sequence))
		})
		if err == nil {
			r.Logger.Error("an outcome could not be delivered, and is a dead letter now",
				"type", e.Type, "id", e.ID, "provider", e.Provider, "user", e.User,
				"tries", letter.Tries, "error", letter.Error)
			r.meters.count(ctx, "dead")
		}
	}
	if err != nil && !isMalformed(err) {
		return false
	}
	_ = r.enter(quit, func(ctx context.Context) (err error) {
		more, err = r.ledger.done(ctx, a, sequence, now)
		return err
	})
	return more
}

func isMalformed(err error) bool {
	_, malformed := errors.AsType[*schema.Malformed](err)
	return malformed
}

// note counts a delivery.
func (r *run) note(ctx context.Context, f *Fault) {
	if f == nil {
		r.meters.count(ctx, "delivered")
		r.figures.delivered(r.Now())
		return
	}
	r.meters.count(ctx, string(f.Blame))
	if f.done() {
		return
	}
	r.figures.failed(r.Now(), short(f))
}

// longest is how much of an error is stored and shown, in bytes.
const longest = 300

// short is an error as it is stored.
func short(f *Fault) string {
	text := f.Error()
	if len(text) > longest {
		text = text[:longest] + "…"
	}
	return text
}

// make makes a missing durable, which goes on where the sink was.
func (s *Sink) make(ctx context.Context) error {
	at, err := bucket.Get[position](ctx, s.bucket.kv, keyPlace+s.Name)
	if err != nil {
		return err
	}
	stream, err := s.JetStream.Stream(ctx, s.Stream)
	if err != nil {
		return err
	}
	c := s.Durable
	if created := stream.CachedInfo().Created; at.Revision > 0 && at.Value.Stream.Equal(created) {
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, at.Value.Sequence+1
	} else if at.Revision > 0 {
		c.DeliverPolicy = jetstream.DeliverAllPolicy // another stream, of which nothing was handled
	}
	_, err = stream.CreateConsumer(ctx, c)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		err = nil
	}
	if err == nil {
		s.Logger.Warn("the sink's durable was missing, and is made where the sink was: " +
			"outcomes may come again")
	}
	return err
}

// position is the stored place up to which a sink has handled all outcomes.
type position struct {
	Sequence uint64    `json:"sequence"`
	Stream   time.Time `json:"stream"` // when the stream of outcomes was made
}
