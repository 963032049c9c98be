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
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// A login that is put off, or another command of its stream, waits in RENEWALS: a schedule on
// deferred.timer that fires on deferred.due, where the durable ConsumerDeferred hands the command
// on. The schedule carries the login as it was published, sealed, and its place among all logins. A
// login published again would lose its place. Only logins put off cannot be rebuilt from the store
// when RENEWALS is lost.

// Headers of a login put off, beside the login's own headers, headerDeferred and headerSender.
const (
	headerStream   = "renewd-login-stream" // when LOGINS was created, as of its grant.Position
	headerSequence = "renewd-login-sequence"
	headerTaken    = "renewd-login-time"
)

// DeferLogin puts a login, or another command of its stream, off until the given time, by the
// server's clock. of is its subject's address, h and data are its message's, position its place,
// deferrals how often the command has been put off, this time included. The command takes the place
// of an older command of the user that was put off, if both are of the same kind. If a newer
// command waits, DeferLogin changes nothing, and the outcome of the newer command answers both.
func (e *Engine) DeferLogin(
	ctx context.Context, of schema.Address, at time.Time, position grant.Position, deferrals int,
	h schema.Header, data []byte,
) error {
	k := grant.Key{Provider: of.Provider, User: of.User}
	timer := e.deferredTo(topology.DeferredTimerFront, of)
	due := e.deferredTo(topology.DeferredDueFront, of)
	deferred := deferredHeader(h, position, deferrals)
	if of.Sender != "" {
		deferred.Set(headerSender, of.Sender)
	}
	schedule(deferred, at, due)
	var there login
	for round := range rounds {
		if there.ours && position.Before(there.position) {
			return nil
		}
		expect(deferred, there.sequence)
		ack, err := e.publish(ctx, topology.Renewals, timer, deferred, data)
		if err == nil {
			return e.yieldToNewer(ctx, of, position, ack.Sequence)
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

// yieldToNewer takes back the login put off at this sequence if a newer login is due already: when
// it fired, the older login would replace the newer one. A newer login that becomes due later was
// on the timer's subject later too, and has taken the older login's place there.
func (e *Engine) yieldToNewer(
	ctx context.Context, of schema.Address, position grant.Position, sequence uint64,
) error {
	due, err := e.deferred(ctx, e.deferredTo(topology.DeferredDueFront, of))
	if err != nil {
		return fmt.Errorf("defer login of %s: %w",
			grant.Key{Provider: of.Provider, User: of.User}, err)
	}
	if !due.ours || !position.Before(due.position) {
		return nil
	}
	upTo := jetstream.WithPurgeSequence(sequence + 1)
	timer := e.deferredTo(topology.DeferredTimerFront, of)
	return e.purge(ctx, topology.Renewals, []string{timer}, upTo)
}

// deferredTo is the subject, below front, of a command put off.
func (e *Engine) deferredTo(front string, of schema.Address) string {
	k := grant.Key{Provider: of.Provider, User: of.User}
	return e.user(front, k) + topology.DeferredEnd(of.Type)
}

// deferredOf returns the subject of the command that this subject puts off, without the ending of
// its kind, and the kind. A user may be called like such an ending.
func (e *Engine) deferredOf(subject string) (plain string, kind schema.Type) {
	const parts = 5 // deferred.due.<provider>.<user>.logout
	inner := strings.TrimPrefix(subject, topology.Prefixed(e.config.Subjects, ""))
	if strings.Count(inner, ".") == parts-1 {
		for _, of := range topology.InLogins() {
			plain, ends := strings.CutSuffix(subject, topology.DeferredEnd(of))
			if ends && plain != subject {
				return plain, of
			}
		}
	}
	return subject, schema.UserLogin
}

// ParseDeferred reads a message of ConsumerDeferred back into the arguments of DeferLogin. An error
// means the message is another writer's. A login put off by a version without senders has no
// sender.
func (e *Engine) ParseDeferred(subject string, h schema.Header) (
	of schema.Address, position grant.Position, deferrals int, original schema.Header, err error,
) {
	subject, kind := e.deferredOf(subject)
	provider, user, err := parseUser(e.config.Subjects, topology.DeferredDueFront, subject)
	if err != nil {
		return of, position, 0, nil, fmt.Errorf("parse deferred login: %w", err)
	}
	of = schema.Address{
		Type: kind, Provider: provider, User: user, Sender: h.Get(headerSender),
	}
	if position, deferrals, err = parseDeferred(h); err == nil && of.Sender != "" {
		err = schema.CheckSender(of.Sender)
	}
	if err != nil {
		return of, position, 0, nil, fmt.Errorf("parse deferred login of %s: %w",
			grant.Key{Provider: provider, User: user}, err)
	}
	return of, position, deferrals, own(h), nil
}

func parseDeferred(h schema.Header) (position grant.Position, deferrals int, err error) {
	for name, to := range map[string]*time.Time{
		headerStream: &position.Stream,
		headerTaken:  &position.Time,
	} {
		if *to, err = time.Parse(time.RFC3339Nano, h.Get(name)); err != nil {
			return grant.Position{}, 0, fmt.Errorf("header %s: %w", name, err)
		}
	}
	if position.Sequence, err = strconv.ParseUint(h.Get(headerSequence), 10, 64); err != nil {
		return grant.Position{}, 0, fmt.Errorf("header %s: %w", headerSequence, err)
	}
	if deferrals, err = strconv.Atoi(h.Get(headerDeferred)); err != nil || deferrals < 0 {
		return grant.Position{}, 0, fmt.Errorf("header %s: %q: want a count",
			headerDeferred, h.Get(headerDeferred))
	}
	return position, deferrals, nil
}

func deferredHeader(h schema.Header, position grant.Position, deferrals int) schema.Header {
	d := own(h)
	d.Set(headerStream, position.Stream.UTC().Format(time.RFC3339Nano))
	d.Set(headerSequence, strconv.FormatUint(position.Sequence, 10))
	d.Set(headerTaken, position.Time.UTC().Format(time.RFC3339Nano))
	d.Set(headerDeferred, strconv.Itoa(deferrals))
	return d
}

// own is the header as the publisher of h wrote it, without instructions to the server and without
// renewd's additions.
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

// login is a login that waits for its next try. The zero value stands for no login.
type login struct {
	position grant.Position
	ours     bool
	sequence uint64
}

func (e *Engine) deferred(ctx context.Context, subject string) (login, error) {
	m, err := e.last(ctx, topology.Renewals, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return login{}, nil
	}
	if err != nil {
		return login{}, err
	}
	return e.loginIn(ctx, m), nil
}

// loginIn is the login or logout put off in m.
func (e *Engine) loginIn(ctx context.Context, m *jetstream.RawStreamMsg) login {
	position, _, err := parseDeferred(schema.Header(m.Header))
	if err != nil {
		e.foreign(ctx, m, err)
	}
	return login{position, err == nil, m.Sequence}
}

// eachDeferred shows the user's login or logout that is put off, be it waiting or due, in the order
// of the stream. A message that moves has a later sequence at its new place before it leaves its
// old place. So no message is missed that is put off again or fires meanwhile. Such a message may
// be shown twice.
func (e *Engine) eachDeferred(
	ctx context.Context, of schema.Address, see func(*jetstream.RawStreamMsg) error,
) error {
	return e.each(ctx, topology.Renewals, e.deferredTo(topology.DeferredFront+".*", of), see)
}

// deferredCount counts the logins put off, be they waiting, due or being handled.
func (e *Engine) deferredCount(ctx context.Context) (uint64, error) {
	return e.subjects(ctx, topology.Renewals,
		topology.Prefixed(e.config.Subjects, topology.DeferredFront)+".>")
}

// LoginWaits reports whether a login of the user was accepted and is not settled yet, be it put off
// or not.
func (e *Engine) LoginWaits(ctx context.Context, k grant.Key) (bool, error) {
	// First LOGINS, since a login put off goes from there to RENEWALS.
	for _, subject := range e.commands(schema.UserLogin, k) {
		if waits, err := e.holds(ctx, topology.Logins, subject); waits || err != nil {
			if err != nil {
				err = fmt.Errorf("look for a login of %s: %w", k, err)
			}
			return waits, err
		}
	}
	deferred := e.user(topology.DeferredFront+".*", k)
	waits, err := e.holds(ctx, topology.Renewals, deferred)
	if err != nil {
		err = fmt.Errorf("look for a login of %s: %w", k, err)
	}
	return waits, err
}
