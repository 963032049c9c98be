package consumers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/schema"
)

// Whom names the user whose answer Await waits for.
type Whom struct {
	Prefix   string // of the installation; usually empty
	Provider string
	User     string
}

// Await publishes a command and waits for its answer. publish returns the command's source and id
// once it is stored.
//
// The answer is the outcome whose cause is that source and id. If a newer command of the same user
// replaced it before work began, it is the first outcome about this user whose work began after the
// command was stored. Both times are the NATS server's, never this process's: its clock may be off.
// So the answer may be any outcome of a user, or a message.rejected. The wait ends with ctx; the
// error then wraps its cause, and the command is still in hand. Safe for concurrent use.
func Await(ctx context.Context, nc *nats.Conn, w Whom, publish func(context.Context) (source, id string, err error)) (schema.Event, error) {
	subjects, err := schema.NewSubjects(w.Prefix)
	if err = errors.Join(err, schema.CheckProvider(w.Provider), schema.CheckUser(w.User)); err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	r := &reader{js: js, stream: subjects.Name(outcomes), filters: filters(subjects, nil, w.Provider, w.User)}
	defer r.close(ctx)
	// The place first, then the command: so the answer cannot come too early to be seen.
	if r.next, err = end(ctx, js, r.stream); err != nil {
		return schema.Event{}, fmt.Errorf("await: %w", err)
	}
	source, id, err := publish(ctx)
	if err != nil {
		return schema.Event{}, err
	}
	var stored time.Time // the command was, by then
	var wait backoff
	for {
		if stored.IsZero() {
			stored, _ = serverTime(ctx, js, r.stream) // until it is known only the cause counts
		}
		messages, err := r.batch(ctx)
		switch {
		case ctx.Err() != nil:
			return schema.Event{}, fmt.Errorf("await the answer to %s: %w", id, context.Cause(ctx))
		case err != nil && !passing(err):
			return schema.Event{}, fmt.Errorf("await the answer to %s: %w", id, err)
		case err != nil:
			wait.wait(ctx)
		}
		for _, m := range messages {
			e, err := subjects.Decode(m.Header, m.Data, arrival(m))
			if err == nil && answers(e, source, id, stored) {
				return e, nil
			}
		}
	}
}

// serverTime asks the server for its time, with a stream's info: the one thing that who waits for
// an outcome may ask it for.
func serverTime(ctx context.Context, js jetstream.JetStream, stream string) (time.Time, error) {
	ctx, stop := context.WithTimeout(ctx, lookupLimit)
	defer stop()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return time.Time{}, err
	}
	return s.CachedInfo().TimeStamp, nil
}

// answers reports whether e answers the command, which was stored not later than stored (zero: not
// known). A rejection may name no source, where that could not be read.
func answers(e schema.Event, source, id string, stored time.Time) bool {
	var data struct {
		Cause   schema.Cause `json:"cause"`
		BeganAt time.Time    `json:"began_at"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return false
	}
	if c := data.Cause; c.ID == id && (c.Source == source || c.Source == "") {
		return true
	}
	return !stored.IsZero() && !data.BeganAt.Before(stored)
}
