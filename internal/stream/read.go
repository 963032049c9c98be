package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/pull"
)

// query asks a stream for a message.
type query struct {
	Last string `json:"last_by_subj,omitempty"` // the newest of this subject, wildcards allowed
	// Next is the subjects, wildcards allowed, of which the first message from sequence From on is
	// wanted.
	Next string `json:"next_by_subj,omitempty"`
	From uint64 `json:"seq,omitempty"`
	// Since is the time from which on the message is wanted, instead of From.
	Since *time.Time `json:"start_time,omitempty"`
}

// holds reports whether the stream has a message of the subject, wildcards allowed.
func (e *Engine) holds(ctx context.Context, base, subject string) (bool, error) {
	_, err := e.last(ctx, base, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// last reads the newest message of a subject.
func (e *Engine) last(ctx context.Context, base, subject string) (*jetstream.RawStreamMsg, error) {
	return e.read(ctx, base, query{Last: subject})
}

// read asks the stream's leader, even if the stream allows direct reads. A direct read may be
// answered by a replica that lags behind an acknowledged publish, and "not there" must never be
// wrong. Headers that cannot be decoded count as no headers, since another writer wrote them.
func (e *Engine) read(ctx context.Context, base string, q query) (*jetstream.RawStreamMsg, error) {
	return e.readFrom(ctx, e.config.Subjects.Name(base), q)
}

// readFrom is read for a stream by its full name.
func (e *Engine) readFrom(
	ctx context.Context, name string, q query,
) (*jetstream.RawStreamMsg, error) {
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
	what := q.Last + q.Next
	err := e.ask(ctx, "STREAM.MSG.GET."+name, q, &answer)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read %s from %s: %w", what, name, err)
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return nil, jetstream.ErrMsgNotFound
	case answer.Error != nil:
		return nil, fmt.Errorf("read %s from %s: %w", what, name, answer.Error)
	case answer.Message == nil:
		return nil, fmt.Errorf("read %s from %s: the answer holds no message", what, name)
	}
	m := answer.Message
	raw := &jetstream.RawStreamMsg{
		Subject:  m.Subject,
		Sequence: m.Sequence,
		Data:     m.Data,
		Time:     m.Time,
	}
	if len(m.Header) > 0 {
		if raw.Header, err = nats.DecodeHeadersMsg(m.Header); err != nil {
			raw.Header = nil
		}
	}
	return raw, nil
}

// subjects counts the subjects of a stream that match the filter, and lists no subject.
func (e *Engine) subjects(ctx context.Context, base, filter string) (uint64, error) {
	var answer struct {
		Error *jetstream.APIError `json:"error"`
		Total uint64              `json:"total"`
	}
	name := e.config.Subjects.Name(base)
	beyond := map[string]any{"subjects_filter": filter, "offset": 1 << 30}
	if err := e.ask(ctx, "STREAM.INFO."+name, beyond, &answer); err != nil {
		return 0, fmt.Errorf("count %s in %s: %w", filter, name, err)
	}
	if answer.Error != nil {
		return 0, fmt.Errorf("count %s in %s: %w", filter, name, answer.Error)
	}
	return answer.Total, nil
}

// ask asks JetStream's API. A question without a request has a nil request.
func (e *Engine) ask(ctx context.Context, what string, request, answer any) (err error) {
	var body []byte
	if request != nil {
		if body, err = json.Marshal(request); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	reply, err := e.js.Conn().RequestWithContext(ctx, pull.APIPrefix(e.js)+what, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

// told remembers that messages were logged.
type told struct {
	mu   sync.Mutex
	seen map[string]uint64
}

// toldAtMost bounds told. Beyond this number told starts empty again, so a message may be logged
// again.
const toldAtMost = 1024

// foreign has the log say, once, that a message is not renewd's. Such a message counts as no
// message: the content of a message must not stop its user forever.
func (e *Engine) foreign(ctx context.Context, m *jetstream.RawStreamMsg, why error) {
	e.told.mu.Lock()
	known := e.told.seen[m.Subject] == m.Sequence
	if e.told.seen == nil || len(e.told.seen) >= toldAtMost {
		e.told.seen = map[string]uint64{}
	}
	e.told.seen[m.Subject] = m.Sequence
	e.told.mu.Unlock()
	if !known {
		e.config.Logger.ErrorContext(ctx,
			"a message is none of renewd's, or damaged: taken for none; who may write there?",
			"subject", m.Subject, "sequence", m.Sequence, "error", why)
	}
}
