package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// A login that is put off waits in RENEWALS: a schedule on deferred.timer that fires on
// deferred.due, where the durable ConsumerDeferred hands it on. It carries the login as it was
// published, sealed, and its place among all logins, which it would lose if it were published anew.
// What the store cannot rebuild when RENEWALS is lost is this alone.

// Headers of a login that was put off, beside its own, headerDeferred and headerSender.
const (
	headerStream   = "renewd-login-stream" // when LOGINS was created, as of its grant.Order
	headerSequence = "renewd-login-sequence"
	headerTaken    = "renewd-login-time"
)

// DeferLogin puts a login off until the given time, by the server's clock: of is its subject's
// address, h and data are its message's, order its place, deferrals how often it has been put off,
// this time included. It takes the place of an older login of the user that was put off; if a newer
// one waits, it changes nothing, and the newer one's outcome answers both.
func (e *Engine) DeferLogin(
	ctx context.Context, of schema.Address, at time.Time, order grant.Order, deferrals int,
	h schema.Header, data []byte,
) error {
	k := grant.Key{Provider: of.Provider, User: of.User}
	timer, due := e.user(deferredTimerSubject, k), e.user(deferredDueSubject, k)
	deferred := deferredHeader(h, order, deferrals)
	if of.Sender != "" {
		deferred.Set(headerSender, of.Sender)
	}
	schedule(deferred, at, due)
	var there login
	for round := range rounds {
		if there.ours && order.Before(there.order) {
			return nil
		}
		expect(deferred, there.sequence)
		ack, err := e.publish(ctx, Renewals, timer, deferred, data)
		if err == nil {
			return e.yieldToNewer(ctx, k, order, ack.Sequence)
		}
		if !refused(err) {
			return fmt.Errorf("defer login of %s: %w", k, err)
		}
		if err := wait(ctx, time.Duration(round)*time.Millisecond); err != nil {
			return fmt.Errorf("defer login of %s: %w", k, err)
		}
		if there, err = e.deferred(ctx, timer); err != nil {
			return fmt.Errorf("defer login of %s: %w", k, err)
		}
	}
	return fmt.Errorf("defer login of %s: others change it all the time", k)
}

// yieldToNewer takes the login that was put off at this sequence back if a newer one is due
// already: fired, the older one would replace it. One that becomes due later was on the timer's
// subject later too, and has taken its place.
func (e *Engine) yieldToNewer(ctx context.Context, k grant.Key, order grant.Order, sequence uint64) error {
	due, err := e.deferred(ctx, e.user(deferredDueSubject, k))
	if err != nil {
		return fmt.Errorf("defer login of %s: %w", k, err)
	}
	if !due.ours || !order.Before(due.order) {
		return nil
	}
	upTo := jetstream.WithPurgeSequence(sequence + 1)
	return e.purge(ctx, Renewals, []string{e.user(deferredTimerSubject, k)}, upTo)
}

// ParseDeferred reads a message of ConsumerDeferred back into what DeferLogin was given. An error
// means that somebody else wrote it. A login that a version without senders put off has none.
func (e *Engine) ParseDeferred(subject string, h schema.Header) (
	of schema.Address, order grant.Order, deferrals int, original schema.Header, err error,
) {
	provider, user, err := parseUser(e.config.Subjects, deferredDueSubject, subject)
	if err != nil {
		return of, order, 0, nil, fmt.Errorf("parse deferred login: %w", err)
	}
	of = schema.Address{
		Type: schema.UserLogin, Provider: provider, User: user, Sender: h.Get(headerSender),
	}
	if order, deferrals, err = parseDeferred(h); err == nil && of.Sender != "" {
		err = schema.CheckSender(of.Sender)
	}
	if err != nil {
		return of, order, 0, nil, fmt.Errorf("parse deferred login of %s: %w", grant.Key{Provider: provider, User: user}, err)
	}
	return of, order, deferrals, own(h), nil
}

func parseDeferred(h schema.Header) (order grant.Order, deferrals int, err error) {
	for name, to := range map[string]*time.Time{headerStream: &order.Stream, headerTaken: &order.Time} {
		if *to, err = time.Parse(time.RFC3339Nano, h.Get(name)); err != nil {
			return grant.Order{}, 0, fmt.Errorf("header %s: %w", name, err)
		}
	}
	if order.Sequence, err = strconv.ParseUint(h.Get(headerSequence), 10, 64); err != nil {
		return grant.Order{}, 0, fmt.Errorf("header %s: %w", headerSequence, err)
	}
	if deferrals, err = strconv.Atoi(h.Get(headerDeferred)); err != nil || deferrals < 0 {
		return grant.Order{}, 0, fmt.Errorf("header %s: %q: want a count", headerDeferred, h.Get(headerDeferred))
	}
	return order, deferrals, nil
}

func deferredHeader(h schema.Header, order grant.Order, deferrals int) schema.Header {
	d := own(h)
	d.Set(headerStream, order.Stream.UTC().Format(time.RFC3339Nano))
	d.Set(headerSequence, strconv.FormatUint(order.Sequence, 10))
	d.Set(headerTaken, order.Time.UTC().Format(time.RFC3339Nano))
	d.Set(headerDeferred, strconv.Itoa(deferrals))
	return d
}

// own is what of h its publisher wrote: nothing that tells the server what to do, nothing that
// renewd adds.
func own(h schema.Header) schema.Header {
	o := make(schema.Header, len(h)+8)
	for name, values := range h {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, "nats-") && !strings.HasPrefix(lower, "renewd-") {
			o[name] = values
		}
	}
	return o
}

// login is one that waits to be tried again. The zero value stands for none.
type login struct {
	order    grant.Order
	ours     bool
	sequence uint64
}

func (e *Engine) deferred(ctx context.Context, subject string) (login, error) {
	m, err := e.last(ctx, Renewals, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return login{}, nil
	}
	if err != nil {
		return login{}, err
	}
	l := login{sequence: m.Sequence}
	if l.order, _, err = parseDeferred(schema.Header(m.Header)); err != nil {
		e.foreign(ctx, m, err)
	}
	l.ours = err == nil
	return l, nil
}

// deferredCount counts the logins that were put off, be they waiting, due or in hand.
func (e *Engine) deferredCount(ctx context.Context) (uint64, error) {
	return e.subjects(ctx, Renewals, prefixed(e.config.Subjects, deferredSubject)+".>")
}

// LoginWaits reports whether a login of the user was accepted that is not settled yet, be it put
// off or not.
func (e *Engine) LoginWaits(ctx context.Context, k grant.Key) (bool, error) {
	type place struct{ base, subject string }
	// In the order in which a login that is put off moves, so that none is missed on its way.
	var places []place
	for _, subject := range e.commands(schema.UserLogin, k) {
		places = append(places, place{Logins, subject})
	}
	for _, front := range []string{deferredTimerSubject, deferredDueSubject} {
		places = append(places, place{Renewals, e.user(front, k)})
	}
	for _, at := range places {
		if waits, err := e.holds(ctx, at.base, at.subject); waits || err != nil {
			if err != nil {
				err = fmt.Errorf("look for a login of %s: %w", k, err)
			}
			return waits, err
		}
	}
	return false, nil
}
