package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// Whom names the user whose answer Await waits for.
type Whom struct {
	Prefix   string // of the installation; usually empty
	Provider string
	User     string
	// Sender is the name that the NATS server gives the publisher of the command (cause.sender of
	// its outcomes). Source and id are a publisher's own words, and another publisher may use the
	// same. With a Sender, an outcome with another sender is no answer. Empty: the sender is not
	// known, and source and id decide.
	Sender string
}

// Await publishes a command and waits for its answer. publish returns the command's source and id
// once the command is stored.
//
// The answer is the outcome whose cause has this source and id, and w.Sender. A newer command of
// the same user may replace the command before work on it began. Then the answer is the first
// outcome about this user whose work began after the command was stored. Both times are the NATS
// server's, since this process's clock may be off. So the answer may be any outcome of a user, or a
// message.rejected.
//
// The wait ends with ctx. The error then wraps ctx's cause, and renewd still handles the command.
// Safe for concurrent use.
func Await(
	ctx context.Context, nc *nats.Conn, w Whom,
	publish func(context.Context) (source, id string, err error),
) (schema.Event, error) {
	subjects, err := schema.NewSubjects(w.Prefix)
	err = errors.Join(err, schema.CheckProvider(w.Provider), schema.CheckUser(w.User))
	if err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	r := &reader{
		js:      js,
		stream:  subjects.Name(schema.StreamOutcomes),
		filters: filters(subjects, nil, w.Provider, w.User),
	}
	defer r.close(ctx)
	// The place first, then the command: so the answer cannot come too early to be seen.
	if r.next, err = end(ctx, js, r.stream); err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	source, id, err := publish(ctx)
	if err != nil {
		return schema.Event{}, err
	}
	var stored time.Time // when the command was surely stored; zero: not known yet
	var wait pull.Backoff
	for {
		if stored.IsZero() {
			stored, _ = serverTime(ctx, js, r.stream) // until stored is known only the cause counts
		}
		messages, err := r.batch(ctx)
		switch {
		case ctx.Err() != nil:
			return schema.Event{}, fmt.Errorf("await the answer to %s: %w", id, context.Cause(ctx))
		case err != nil && !passing(err):
			return schema.Event{}, fmt.Errorf("await the answer to %s: %w", id, err)
		case err != nil:
			wait.Wait(ctx)
		}
		for _, m := range messages {
			e, err := subjects.Decode(m.Header, m.Data, arrival(m))
			if err == nil && w.answers(e, source, id, stored) {
				return e, nil
			}
		}
	}
}

// serverTime asks the server for its time, with a stream's info. No other request that tells the
// time is allowed to a caller who waits for an outcome.
func serverTime(ctx context.Context, js jetstream.JetStream, stream string) (time.Time, error) {
	ctx, stop := context.WithTimeout(ctx, runner.LookupLimit)
	defer stop()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	return s.CachedInfo().TimeStamp, nil
}

// answers reports whether e answers the command, which was stored not later than stored (zero: not
// known). A rejection names no source if the source could not be read.
func (w Whom) answers(e schema.Event, source, id string, stored time.Time) bool {
	var data struct {
		Cause   schema.Cause `json:"cause"`
		BeganAt time.Time    `json:"began_at"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return false
	}
	c := data.Cause
	if c.ID == id && (c.Source == source || c.Source == "") &&
		(w.Sender == "" || c.Sender == w.Sender) {
		return true
	}
	return !stored.IsZero() && !data.BeganAt.Before(stored)
}
