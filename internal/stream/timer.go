package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// A message on a subject of RENEWALS is replaced by compare-and-swap where it may be the only trace
// of a command. The server stores a message with an expected sequence only if this is still the
// last sequence of its subject. The server honours the condition for schedules too, with one
// replica and with three. A firing timer knows no such condition.

// rounds bounds how often a compare-and-swap is tried: each new try needs another writer of the
// same grant to have got in between.
const rounds = 32

// Arm has w done for the grant at the given time, by the server's clock; a past time is now. A
// grant has one timer: if a timer stands already, grant.Timer.Over says what is left of the two.
// When the timer fires, the message carries its work and the trace context of the caller that asked
// for the work. A command waits for a timer about to fire.
func (e *Engine) Arm(ctx context.Context, k grant.Key, at time.Time, w grant.Work) error {
	for {
		err := e.arm(ctx, k, grant.Timer{At: at.UTC().Round(0), Work: w})
		if errors.Is(err, errFiring) {
			err = wait(ctx, firing/20)
		} else if err == nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("arm %s: %w", k, err)
		}
	}
}

// A server that fires a timer removes any message on the timer's subject by then, without a word.
// The reconciler sees to a timer lost this way, but a lost command leaves no trace. So a command
// never takes the place of a timer whose time has come, until the time is so long over that the
// server must have refused to fire the timer.
const (
	firing  = time.Second // servers electing a leader take longer to fire, and to say so
	unfired = 5 * time.Second
)

var errFiring = errors.New("the timer that stands there is about to fire")

// isFiring reports whether the server may be about to fire the timer s.
func (s Standing) isFiring(now time.Time) bool {
	return s.Ours && !s.At.IsZero() && s.At.Before(now.Add(firing)) && s.At.After(now.Add(-unfired))
}

func (e *Engine) arm(ctx context.Context, k grant.Key, t grant.Timer) error {
	mine, err := e.beside(ctx, k, t)
	if err != nil {
		return err
	}
	return e.swap(ctx, e.timer(k), func(there Standing) (schema.Header, error) {
		if grant.IsCommand(mine.Work.Cause) && there.isFiring(e.Now()) {
			return nil, errFiring
		}
		if !there.Ours {
			return e.timerHeader(ctx, k, mine), nil
		}
		next := mine.Over(there.Timer)
		switch {
		case next == there.Timer:
			return nil, nil
		case next.Work.Cause == there.Work.Cause:
			return e.timerHeader(e.config.Propagator.Extract(ctx, there.header), k, next), nil
		}
		return e.timerHeader(ctx, k, next), nil
	})
}

// beside is the timer of a command, together with a command that was put off before and fired. The
// timer, firing, would take the place of the fired command. No worker handles the fired command any
// more if its worker has died.
func (e *Engine) beside(ctx context.Context, k grant.Key, t grant.Timer) (grant.Timer, error) {
	if !grant.IsCommand(t.Work.Cause) {
		return t, nil
	}
	fired, err := e.standing(ctx, e.later(k))
	if err != nil || !fired.Ours {
		return t, err
	}
	fired.At = t.At
	return t.Over(fired.Timer), nil
}

// swap publishes the header that next makes of the standing message, until no other write got in
// between; a nil header leaves the subject as it is. The first try assumes an empty subject, which
// costs no read.
func (e *Engine) swap(
	ctx context.Context, subject string, next func(there Standing) (schema.Header, error),
) error {
	var there Standing
	for round := range rounds {
		h, err := next(there)
		if h == nil || err != nil {
			return err
		}
		expect(h, there.Sequence)
		if _, err = e.publish(ctx, topology.Renewals, subject, h, nil); !refused(err) {
			return err
		}
		// A replicated stream also refuses a message on a subject where another message is under
		// way.
		if err := wait(ctx, time.Duration(round)*time.Millisecond); err != nil {
			return err
		}
		if there, err = e.standing(ctx, subject); err != nil {
			return err
		}
	}
	return fmt.Errorf("publish %s: others change it all the time", subject)
}

func (e *Engine) timerHeader(ctx context.Context, k grant.Key, t grant.Timer) schema.Header {
	h := workHeader(t.Work)
	e.config.Propagator.Inject(ctx, h)
	schedule(h, t.At, e.fires(k, t.Work))
	return h
}

// schedule makes h the header of a message that fires on target at the given time.
func schedule(h schema.Header, at time.Time, target string) {
	// Not jetstream.WithScheduleAt, which cuts to whole seconds: the timer would be early, and all
	// timers of a second would fire together. No message id: a repeated id would leave the old
	// timer in place.
	h[jetstream.ScheduleHeader] = []string{atPrefix + at.UTC().Format(time.RFC3339Nano)}
	h[jetstream.ScheduleTargetHeader] = []string{target}
}

const atPrefix = "@at "

func scheduled(h schema.Header) (time.Time, error) {
	at, ok := strings.CutPrefix(h.Get(jetstream.ScheduleHeader), atPrefix)
	if !ok {
		return time.Time{}, fmt.Errorf("header %s: want %s<time>",
			jetstream.ScheduleHeader, atPrefix)
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return t, fmt.Errorf("header %s: %w", jetstream.ScheduleHeader, err)
	}
	return t, nil
}

// expect has the server store the message only if the last message of its subject has this
// sequence; 0 stands for a subject without a message.
func expect(h schema.Header, sequence uint64) {
	h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(sequence, 10)}
}

// refused reports whether the server did not store a message because another message stands on its
// subject. A replicated stream says so in other words than a single stream.
func refused(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Wake makes the grant due now and removes its timer, in one step. A queued renewal of the same
// kind (command or not) is replaced. A renewal being handled finishes, and the new renewal follows
// it.
func (e *Engine) Wake(ctx context.Context, k grant.Key, w grant.Work) error {
	if err := e.wake(ctx, k, w, func(schema.Header) {}); err != nil {
		return fmt.Errorf("wake %s: %w", k, err)
	}
	return nil
}

// codeNoSchedule is the server's answer to a wake where the message on the timer's subject is no
// timer.
const codeNoSchedule jetstream.ErrorCode = 10212

func (e *Engine) wake(
	ctx context.Context, k grant.Key, w grant.Work, condition func(schema.Header),
) error {
	h := workHeader(w)
	e.config.Propagator.Inject(ctx, h)
	h.Set("Nats-Schedule-Next", "purge")
	h.Set(jetstream.SchedulerHeader, e.timer(k))
	condition(h)
	target := e.wakes(k, w)
	_, err := e.publish(ctx, topology.Renewals, target, h, nil)
	if api, ok := errors.AsType[*jetstream.APIError](err); !ok || api.ErrorCode != codeNoSchedule {
		return err
	}
	there, lookErr := e.standing(ctx, e.timer(k))
	if lookErr != nil || there.Ours {
		return errors.Join(err, lookErr)
	}
	upTo := jetstream.WithPurgeSequence(there.Sequence + 1)
	if err := e.purge(ctx, topology.Renewals, []string{e.timer(k)}, upTo); err != nil {
		return err
	}
	_, err = e.publish(ctx, topology.Renewals, target, h, nil)
	return err
}

// Request is Wake for a command, without weakening waiting work. The renewal gets the strongest
// want of the command and of the replaced messages, and their latest mark of the grant's record.
// Request changes nothing where a command waits that wants as much and that no worker has looked at
// yet. The outcome of the waiting command then answers this command too, and a user with many
// requests keeps the place in the queue. A login waits in the grant's record as well, so a login
// never takes the place of another command: see grant.Work.Names.
func (e *Engine) Request(ctx context.Context, k grant.Key, w grant.Work) error {
	subjects := []string{e.timer(k)} // the first try assumes no waiting command
	for round := range rounds {
		there, err := e.standings(ctx, subjects...)
		if err != nil {
			return fmt.Errorf("request %s: %w", k, err)
		}
		subjects = []string{e.timer(k), e.asked(k)}
		there = append(there, Standing{})
		timer, asked := there[0], there[1]
		want := w.Stronger(timer.Work).Stronger(asked.Work)
		for _, waiting := range there {
			if waiting.Ours && waiting.Work.Names(want) {
				want.Cause = waiting.Work.Cause
			}
		}
		if asked.answers(w, want) {
			if queued, err := e.queued(ctx, k, asked); queued || err != nil {
				return err
			}
		}
		err = e.wake(ctx, k, want, func(h schema.Header) { expect(h, asked.Sequence) })
		if err == nil {
			return nil
		}
		if !refused(err) {
			return fmt.Errorf("request %s: %w", k, err)
		}
		if err := wait(ctx, time.Duration(round)*time.Millisecond); err != nil {
			return fmt.Errorf("request %s: %w", k, err)
		}
	}
	return fmt.Errorf("request %s: others wake it all the time", k)
}

// answers reports whether the outcome of the waiting command answers this command too: the waiting
// command wants all that this command and the waiting work want together.
func (s Standing) answers(command, want grant.Work) bool {
	return s.Ours && !command.Names(s.Work) && s.Work.Covers(want)
}

// queued reports whether the waiting message has surely not been taken up: no worker has it, and it
// has no outcome.
func (e *Engine) queued(ctx context.Context, k grant.Key, waits Standing) (bool, error) {
	name := e.config.Subjects.Name(topology.Renewals)
	var info delivered
	err := e.ask(ctx, "CONSUMER.INFO."+name+"."+topology.ConsumerRenew(k.Provider), nil, &info)
	if err != nil {
		return false, fmt.Errorf("look whether the renewal of %s was delivered: %w", k, err)
	}
	if info.Error != nil && info.Error.ErrorCode != jetstream.JSErrCodeConsumerNotFound {
		return false, fmt.Errorf("look whether the renewal of %s was delivered: %w", k, info.Error)
	}
	if info.Error != nil || info.mayHave(waits.Sequence, waits.stored) {
		return false, nil
	}
	answered, err := e.Answered(ctx, k, grant.OutcomeID(k, waits.Work.Cause))
	return !answered, err
}

// delivered is a consumer's account of its deliveries.
type delivered struct {
	Error     *jetstream.APIError `json:"error"`
	Delivered struct {
		Stream uint64 `json:"stream_seq"`
	} `json:"delivered"`
	Cluster struct {
		LeaderSince time.Time `json:"leader_since"` // zero: a single server
	} `json:"cluster"`
}

// mayHave reports whether the consumer may have delivered the message with this sequence and time
// of storage. A leader of the consumer does not know all deliveries of the leader before.
func (d delivered) mayHave(sequence uint64, stored time.Time) bool {
	led := d.Cluster.LeaderSince
	return sequence <= d.Delivered.Stream || !led.IsZero() && stored.Before(led.Add(serversApart))
}

// Hasten has the grant's timer fire at a time, if the timer would fire some time later. The timer
// keeps its work. If another writer moved the timer meanwhile, Hasten leaves it there. A timer that
// fires soon is left alone, since the server may be about to fire it: see firing.
func (e *Engine) Hasten(ctx context.Context, k grant.Key, at time.Time) (done bool, err error) {
	timer, due, err := e.Waits(ctx, k)
	if err != nil {
		return false, fmt.Errorf("look for the timer of %s: %w", k, err)
	}
	if len(due) > 0 || !timer.Ours || timer.At.Before(at.Add(unfired)) {
		return false, nil
	}
	h := maps.Clone(timer.header)
	maps.Copy(h, workHeader(timer.Work.PutOff(at)))
	schedule(h, at, e.fires(k, timer.Work))
	return e.PutAgain(ctx, Standing{Subject: timer.Subject, header: h, Sequence: timer.Sequence})
}
