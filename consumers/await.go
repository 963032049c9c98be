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

// Await publishes a command and waits for its answer. publish returns the command's id and when the stream accepted it.
//
// The answer is the outcome whose cause is that id. If a newer command of the same user replaced it before work began, it
// is the first outcome about this user whose work began no earlier than the acceptance. So the answer may be any outcome
// of a user, or a message.rejected. The wait ends with ctx; the error then wraps its cause, and the command is still in
// hand. Safe for concurrent use.
func Await(ctx context.Context, nc *nats.Conn, w Whom, publish func(context.Context) (id string, accepted time.Time, err error)) (schema.Event, error) {
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
	id, accepted, err := publish(ctx)
	if err != nil {
		return schema.Event{}, err
	}
	var wait backoff
	for {
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
			if err == nil && answers(e, id, accepted) {
				return e, nil
			}
		}
	}
}

func answers(e schema.Event, id string, accepted time.Time) bool {
	var data struct {
		Cause   schema.Cause `json:"cause"`
		BeganAt time.Time    `json:"began_at"`
	}
	if json.Unmarshal(e.Data, &data) != nil {
		return false
	}
	return data.Cause.ID == id || !data.BeganAt.IsZero() && !accepted.IsZero() && !data.BeganAt.Before(accepted)
}
