package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/schema"
)

// userOutcomes are the types that answer a renewal.
func userOutcomes() []schema.Type {
	return []schema.Type{schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed}
}

// Publish stores the outcome in OUTCOMES. A second one with the same id within the duplicate window is dropped; beyond it
// see Answered.
func (e *Engine) Publish(ctx context.Context, event schema.Event) error {
	return e.PublishMarked(ctx, event, grant.Mark{})
}

// PublishMarked is Publish for an outcome made from a record, whose mark it carries (Newest).
func (e *Engine) PublishMarked(ctx context.Context, event schema.Event, m grant.Mark) error {
	h, data := schema.Encode(event)
	setMark(h, m)
	e.config.Propagator.Inject(ctx, h)
	if event.Type == schema.UserSynced && e.config.SyncedTTL > 0 {
		h.Set(jetstream.MsgTTLHeader, e.config.SyncedTTL.String())
	}
	if _, err := e.publish(ctx, Outcomes, e.config.Subjects.Of(event.Address()), h, data); err != nil {
		return fmt.Errorf("publish %s %s: %w", event.Type, event.ID, err)
	}
	return nil
}

// Answered reports whether the outcome with this id is the user's last of its type: it was published, also when that is
// longer ago than the duplicate window.
func (e *Engine) Answered(ctx context.Context, k grant.Key, id string) (bool, error) {
	for _, t := range userOutcomes() {
		last, found, err := e.lastOutcome(ctx, k, t)
		if err != nil {
			return false, fmt.Errorf("look for outcome %s of %s: %w", id, k, err)
		}
		if found && last.event.ID == id {
			return true, nil
		}
	}
	return false, nil
}

// LoginWaits reports whether a login of the user was accepted that is not settled yet.
func (e *Engine) LoginWaits(ctx context.Context, k grant.Key) (bool, error) {
	waits, err := e.holds(ctx, Logins, e.config.Subjects.Of(schema.Address{Type: schema.UserLogin, Provider: k.Provider, User: k.User}))
	if err != nil {
		return false, fmt.Errorf("look for a login of %s: %w", k, err)
	}
	return waits, nil
}

// LastOutcome returns the user's newest user.synced, user.reauth_required or user.refresh_failed; found is false if there
// is none.
func (e *Engine) LastOutcome(ctx context.Context, k grant.Key) (event schema.Event, found bool, err error) {
	var sequence uint64
	for _, t := range userOutcomes() {
		last, ok, err := e.lastOutcome(ctx, k, t)
		if err != nil {
			return schema.Event{}, false, fmt.Errorf("last outcome of %s: %w", k, err)
		}
		if ok && last.sequence > sequence {
			event, found, sequence = last.event, true, last.sequence
		}
	}
	return event, found, nil
}

type storedOutcome struct {
	event    schema.Event
	sequence uint64
}

func (e *Engine) lastOutcome(ctx context.Context, k grant.Key, t schema.Type) (storedOutcome, bool, error) {
	m, err := e.last(ctx, Outcomes, e.config.Subjects.Of(schema.Address{Type: t, Provider: k.Provider, User: k.User}))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return storedOutcome{}, false, nil
	}
	if err != nil {
		return storedOutcome{}, false, err
	}
	event, err := e.config.Subjects.Decode(schema.Header(m.Header), m.Data, schema.Arrival{
		Subject: m.Subject, Stream: e.config.Subjects.Name(Outcomes), Sequence: m.Sequence, Time: m.Time,
	})
	if err != nil {
		return storedOutcome{}, false, fmt.Errorf("%s at sequence %d: %w", m.Subject, m.Sequence, err)
	}
	return storedOutcome{event, m.Sequence}, true, nil
}

// holds reports whether the stream has a message of the subject.
func (e *Engine) holds(ctx context.Context, base, subject string) (bool, error) {
	_, err := e.last(ctx, base, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// last reads the newest message of a subject through the stream's leader, whatever the stream allows: a direct read may
// be answered by a replica that lags behind an acknowledged publish, and "not there" is what we must not be wrong about.
func (e *Engine) last(ctx context.Context, base, subject string) (*jetstream.RawStreamMsg, error) {
	name := e.config.Subjects.Name(base)
	request, err := json.Marshal(map[string]string{"last_by_subj": subject})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	reply, err := e.js.Conn().RequestWithContext(ctx, e.apiPrefix()+"STREAM.MSG.GET."+name, request)
	if err != nil {
		return nil, fmt.Errorf("read %s from %s: %w", subject, name, err)
	}
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject  string    `json:"subject"`
			Sequence uint64    `json:"seq"`
			Header   []byte    `json:"hdrs"`
			Data     []byte    `json:"data"`
			Time     time.Time `json:"time"`
		} `json:"message"`
	}
	switch err := json.Unmarshal(reply.Data, &answer); {
	case err != nil:
		return nil, fmt.Errorf("read %s from %s: decode answer: %w", subject, name, err)
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case answer.Error != nil:
		return nil, fmt.Errorf("read %s from %s: %w", subject, name, answer.Error)
	case answer.Message == nil:
		return nil, fmt.Errorf("read %s from %s: the answer holds no message", subject, name)
	}
	m := answer.Message
	raw := &jetstream.RawStreamMsg{Subject: m.Subject, Sequence: m.Sequence, Data: m.Data, Time: m.Time}
	if len(m.Header) > 0 {
		if raw.Header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			return nil, fmt.Errorf("read %s from %s: decode header: %w", subject, name, err)
		}
	}
	return raw, nil
}

// apiPrefix is where the API of the JetStream that e was given listens.
func (e *Engine) apiPrefix() string {
	o := e.js.Options()
	switch {
	case o.APIPrefix != "":
		return strings.TrimSuffix(o.APIPrefix, ".") + "."
	case o.Domain != "":
		return "$JS." + o.Domain + ".API."
	}
	return jetstream.DefaultAPIPrefix
}
