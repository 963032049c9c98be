package stream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// What stands on a subject of RENEWALS is replaced by compare-and-swap where it may be somebody's
// only trace: the server stores a message with an expected sequence only if that is still the last
// one of its subject. It honours that for schedules too, with one replica and with three; a firing
// knows no such condition.

// rounds bounds how often a compare-and-swap is tried: each needs another writer of the same grant
// to have got in between.
const rounds = 32

// Arm has w done for the grant at the given time, by the server's clock; one that has passed is
// now. A grant has one timer: if one stands already, grant.Timer.Over says what is left of the two.
// When it fires, the message carries its work and the trace context of whoever asked for it. A
// command waits for a timer that is about to fire.
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

// A server that fires a timer removes whatever stands on the timer's subject by then, without a word.
// For a timer that is lost like that the reconciler sees to it; of a command nobody else knows. So a
// command never takes the place of a timer whose time has come, until it has been over for so long
// that the server must have refused to fire it.
const (
	firing  = time.Second // servers that elect a leader take longer to fire, and to say so
	unfired = 5 * time.Second
)

var errFiring = errors.New("the timer that stands there is about to fire")

// isFiring reports whether the server may be about to fire what stands there.
func (s standing) isFiring(now time.Time) bool {
	return s.ours && !s.At.IsZero() && s.At.Before(now.Add(firing)) && s.At.After(now.Add(-unfired))
}

func (e *Engine) arm(ctx context.Context, k grant.Key, t grant.Timer) error {
	mine, err := e.beside(ctx, k, t)
	if err != nil {
		return err
	}
	return e.swap(ctx, e.timer(k), func(there standing) (schema.Header, error) {
		if grant.IsCommand(mine.Work.Cause) && there.isFiring(e.Now()) {
			return nil, errFiring
		}
		if !there.ours {
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

// beside is the timer of a command together with one that was put off before and fired: firing would
// take that one's place, in nobody's hand where its worker has died.
func (e *Engine) beside(ctx context.Context, k grant.Key, t grant.Timer) (grant.Timer, error) {
	if !grant.IsCommand(t.Work.Cause) {
		return t, nil
	}
	fired, err := e.standing(ctx, e.later(k))
	if err != nil || !fired.ours {
		return t, err
	}
	fired.At = t.At
	return t.Over(fired.Timer), nil
}

// swap publishes what next makes of what stands on the subject, until nobody got in between; nil
// leaves it as it is. It first takes for granted that nothing stands there, which costs no read.
func (e *Engine) swap(ctx context.Context, subject string, next func(there standing) (schema.Header, error)) error {
	var there standing
	for round := range rounds {
		h, err := next(there)
		if h == nil || err != nil {
			return err
		}
		expect(h, there.sequence)
		if _, err = e.publish(ctx, Renewals, subject, h, nil); !refused(err) {
			return err
		}
		// A replicated stream also refuses what meets a message that is still under way.
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

// schedule makes a message one that fires on target at the given time.
func schedule(h schema.Header, at time.Time, target string) {
	// Not jetstream.WithScheduleAt, which cuts to whole seconds: the timer would be early, and all
	// timers of a second would fire together. No message id: a repeated one would leave the old
	// timer in place.
	h[jetstream.ScheduleHeader] = []string{atPrefix + at.UTC().Format(time.RFC3339Nano)}
	h[jetstream.ScheduleTargetHeader] = []string{target}
}

const atPrefix = "@at "

func scheduled(h schema.Header) (time.Time, error) {
	at, ok := strings.CutPrefix(h.Get(jetstream.ScheduleHeader), atPrefix)
	if !ok {
		return time.Time{}, fmt.Errorf("header %s: want %s<time>", jetstream.ScheduleHeader, atPrefix)
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return t, fmt.Errorf("header %s: %w", jetstream.ScheduleHeader, err)
	}
	return t, nil
}

// expect has the server store the message only if the last one of its subject has this sequence; 0:
// if there is none.
func expect(h schema.Header, sequence uint64) {
	h[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(sequence, 10)}
}

// refused reports whether the server did not store a message because something else stands on its
// subject. A replicated stream says so in other words than a single one.
func refused(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	return ok && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// Wake makes the grant due now and removes its timer, in one step. A renewal of its kind, command
// or none, that waits or is in hand is replaced: one that waits becomes this one, one in hand is
// followed by this one.
func (e *Engine) Wake(ctx context.Context, k grant.Key, w grant.Work) error {
	if err := e.wake(ctx, k, w, func(schema.Header) {}); err != nil {
		return fmt.Errorf("wake %s: %w", k, err)
	}
	return nil
}

// codeNoSchedule is the server's answer to a wake where something stands on the timer's subject
// that is no timer.
const codeNoSchedule jetstream.ErrorCode = 10212

func (e *Engine) wake(ctx context.Context, k grant.Key, w grant.Work, condition func(schema.Header)) error {
	h := workHeader(w)
	e.config.Propagator.Inject(ctx, h)
	h.Set("Nats-Schedule-Next", "purge")
	h.Set(jetstream.SchedulerHeader, e.timer(k))
	condition(h)
	target := e.wakes(k, w)
	_, err := e.publish(ctx, Renewals, target, h, nil)
	if api, ok := errors.AsType[*jetstream.APIError](err); !ok || api.ErrorCode != codeNoSchedule {
		return err
	}
	there, lookErr := e.standing(ctx, e.timer(k))
	if lookErr != nil || there.ours {
		return errors.Join(err, lookErr)
	}
	upTo := jetstream.WithPurgeSequence(there.sequence + 1)
	if err := e.purge(ctx, Renewals, []string{e.timer(k)}, upTo); err != nil {
		return err
	}
	_, err = e.publish(ctx, Renewals, target, h, nil)
	return err
}

// Request is Wake for a command, without weakening what waits: the renewal gets the strongest want
// of the command and of what it replaces, and the latest that they know of the grant's record. It
// changes nothing where a command that wants as much waits and nobody has looked at it yet: that
// one's outcome answers this one too, and a user for whom is asked often keeps the place in the
// queue. A login waits in the grant's record as well, so it never takes the place of another
// command: see grant.Work.Names.
func (e *Engine) Request(ctx context.Context, k grant.Key, w grant.Work) error {
	subjects := []string{e.timer(k)} // first it is taken for granted that no command waits
	for round := range rounds {
		there, err := e.standings(ctx, subjects...)
		if err != nil {
			return fmt.Errorf("request %s: %w", k, err)
		}
		subjects = []string{e.timer(k), e.asked(k)}
		there = append(there, standing{})
		timer, asked := there[0], there[1]
		want := w.Stronger(timer.Work).Stronger(asked.Work)
		for _, waiting := range there {
			if waiting.ours && waiting.Work.Names(want) {
				want.Cause = waiting.Work.Cause
			}
		}
		if asked.answers(w, want) {
			if queued, err := e.queued(ctx, k, asked.sequence); queued || err != nil {
				return err
			}
		}
		err = e.wake(ctx, k, want, func(h schema.Header) { expect(h, asked.sequence) })
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

// answers reports whether the outcome of the command that waits answers this one too, as it wants
// all that this one and what waits want together.
func (s standing) answers(command, want grant.Work) bool {
	return s.ours && !command.Names(s.Work) && s.Work.Covers(want)
}

// queued reports whether no worker has had the due message in hand yet.
func (e *Engine) queued(ctx context.Context, k grant.Key, sequence uint64) (bool, error) {
	c, err := e.js.Consumer(ctx, e.config.Subjects.Name(Renewals), ConsumerRenew(k.Provider))
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look whether the renewal of %s was delivered: %w", k, err)
	}
	return sequence > c.CachedInfo().Delivered.Stream, nil
}

// wakeLost makes a grant due that nothing waits for any more; woken is false if something does
// after all. What waits, a timer that was set meanwhile too, stays.
func (e *Engine) wakeLost(ctx context.Context, k grant.Key, w grant.Work) (woken bool, err error) {
	h := workHeader(w)
	expect(h, 0)
	switch _, err := e.publish(ctx, Renewals, e.due(k), h, nil); {
	case refused(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("wake %s: %w", k, err)
	}
	return true, nil
}

// putAgain puts what stands behind all the rest, so that the server takes it up anew: it never tries
// again a timer whose firing it had to refuse, nor a message that its consumer has passed over. What
// moved meanwhile stays.
func (e *Engine) putAgain(ctx context.Context, s standing) (done bool, err error) {
	h := maps.Clone(s.header)
	expect(h, s.sequence)
	switch _, err := e.publish(ctx, Renewals, s.subject, h, nil); {
	case refused(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("put %s again: %w", s.subject, err)
	}
	return true, nil
}

// standing is the message that stands on a subject of RENEWALS. The zero value stands for none.
type standing struct {
	grant.Timer // of a due message: without its time
	ours        bool
	subject     string
	sequence    uint64
	header      schema.Header
}

// fired is a due message without what the server says of the timer that it comes from: from a client
// that would be the order to remove the user's timer.
func (s standing) fired() standing {
	s.header = maps.Clone(s.header)
	maps.DeleteFunc(s.header, func(name string, _ []string) bool { return strings.HasPrefix(name, "Nats-Schedule") })
	return s
}

// standing reads what stands on one of the subjects where a grant may wait. What somebody else
// wrote there is not ours.
func (e *Engine) standing(ctx context.Context, subject string) (standing, error) {
	m, err := e.last(ctx, Renewals, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return standing{}, nil
	}
	if err != nil {
		return standing{}, err
	}
	s := standing{subject: m.Subject, sequence: m.Sequence, header: schema.Header(m.Header)}
	timer := strings.HasPrefix(subject, prefixed(e.config.Subjects, timerSubject)+".")
	if s.Work, err = parseWork(s.header); err == nil && timer {
		s.At, err = scheduled(s.header)
	}
	if s.ours = err == nil; !s.ours {
		s.Timer = grant.Timer{}
		e.foreign(ctx, m, err)
	}
	return s, nil
}

// standings reads what stands on several subjects, at once.
func (e *Engine) standings(ctx context.Context, subjects ...string) ([]standing, error) {
	all := make([]standing, len(subjects))
	group, ctx := errgroup.WithContext(ctx)
	for i, subject := range subjects {
		group.Go(func() (err error) { all[i], err = e.standing(ctx, subject); return err })
	}
	return all, group.Wait()
}

// waits reads the timer of a grant, and what waits for its turn, be it renewd's or not.
func (e *Engine) waits(ctx context.Context, k grant.Key) (timer standing, due []standing, err error) {
	all, err := e.standings(ctx, e.renewals(k)...)
	if err != nil {
		return standing{}, nil, err
	}
	return all[0], slices.DeleteFunc(all[1:], func(s standing) bool { return s.sequence == 0 }), nil
}

// HasTimer reports whether the grant waits for its time, or is due.
func (e *Engine) HasTimer(ctx context.Context, k grant.Key) (bool, error) {
	timer, due, err := e.waits(ctx, k)
	if err != nil {
		return false, fmt.Errorf("look for the timer of %s: %w", k, err)
	}
	return timer.sequence != 0 || len(due) > 0, nil
}
