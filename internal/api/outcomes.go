package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/renewd/renewd/consumers"
	"github.com/renewd/renewd/internal/clients"
	"github.com/renewd/renewd/schema"
)

// Outcome is an event in the CloudEvents JSON format, with the provider as an extension.
type Outcome struct {
	SpecVersion string          `json:"specversion"`
	ID          string          `json:"id"`
	Source      string          `json:"source"`
	Type        schema.Type     `json:"type"`
	Provider    string          `json:"provider,omitempty"`
	Subject     string          `json:"subject,omitempty" doc:"The user's id."`
	Time        time.Time       `json:"time"`
	DataSchema  string          `json:"dataschema,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`
}

// OutcomeOf is an event as this interface shows it.
func OutcomeOf(e schema.Event) Outcome {
	return Outcome{"1.0", e.ID, e.Source, e.Type, e.Provider, e.User, e.Time, e.DataSchema, e.Data}
}

// outcomesInput chooses outcomes.
type outcomesInput struct {
	Accept      string    `header:"Accept" doc:"text/event-stream listens; application/x-ndjson reads what is stored, a JSON object a line."`
	Type        []string  `query:"type,explode" doc:"Only these types of events; may be repeated."`
	Provider    string    `query:"provider" doc:"Only this provider."`
	User        string    `query:"user" doc:"Only this user, with its provider."`
	Since       time.Time `query:"since" doc:"ndjson: only what was stored from then on."`
	Until       time.Time `query:"until" doc:"ndjson: only what was stored before then."`
	LastEventID string    `header:"Last-Event-ID" doc:"event-stream: the id of the last event that was handled. Without it the stream begins now."`
}

// choice is which outcomes a caller wants and may see.
type choice struct {
	types    []schema.Type
	provider string
	user     string
	may      clients.Client
	still    func() bool // the caller's secret, rights and providers are as they were
}

// wants reports whether an outcome is chosen. An outcome about no provider is for clients that are
// not bound to providers.
func (c choice) wants(e schema.Event) bool {
	switch {
	case len(c.types) > 0 && !slices.Contains(c.types, e.Type):
	case c.provider != "" && e.Provider != c.provider, c.user != "" && e.User != c.user:
	default:
		return c.may.MayDo(clients.Read, e.Provider)
	}
	return false
}

const (
	eventStream = "text/event-stream"
	ndjson      = "application/x-ndjson"
)

func (a *API) registerOutcomes() {
	op := operation(
		"outcomes",
		http.MethodGet,
		"/v1/outcomes",
		"Listen to outcomes, or read them back",
		clients.Read,
	)
	op.Description = "With Accept: text/event-stream the answer goes on until one side ends it; " +
		"each event has a place in the stream as its id, and a client that comes back with " +
		"Last-Event-ID misses none. With application/x-ndjson the stored outcomes are " +
		"read and the answer ends."
	op.Responses = map[string]*huma.Response{"200": {
		Description: "Outcomes, oldest first.",
		Content: map[string]*huma.MediaType{
			eventStream: {
				Schema: &huma.Schema{Type: huma.TypeString},
			}, ndjson: {Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}}
	huma.Register(a.huma, op, a.outcomes)
}

func (a *API) outcomes(ctx context.Context, in *outcomesInput) (*huma.StreamResponse, error) {
	c, err := a.choose(ctx, in)
	if err != nil {
		return nil, err
	}
	if strings.Contains(in.Accept, ndjson) {
		return a.replay(in, c)
	}
	return a.listen(ctx, in, c)
}

// choose checks the request.
func (a *API) choose(ctx context.Context, in *outcomesInput) (choice, error) {
	who := callerOf(ctx)
	c := choice{provider: in.Provider, user: in.User, may: who.Client, still: who.still}
	for _, t := range in.Type {
		if !slices.Contains(schema.Outcomes(), schema.Type(t)) {
			return c, wrongField("query.type", fmt.Sprintf("%q is no type of outcomes", t))
		}
		c.types = append(c.types, schema.Type(t))
	}
	switch {
	case c.user != "" && c.provider == "":
		return c, wrongField("query.provider", "missing, and needed with a user")
	case c.provider != "" && !c.may.MayDo(clients.Read, c.provider):
		return c, problem(codeForbidden, "the client may not read outcomes of this provider")
	case c.user != "" && schema.CheckUser(c.user) != nil:
		return c, wrongField("query.user", schema.CheckUser(c.user).Error())
	case c.provider != "":
		if err := schema.CheckProvider(c.provider); err != nil {
			return c, wrongField("query.provider", err.Error())
		}
	}
	return c, nil
}

// beat is how often a listener hears something, so that both sides notice a dead connection.
const beat = 15 * time.Second

// gather is how long a listener that has read all waits before it looks again: under load it gets
// several outcomes at a time.
const gather = 20 * time.Millisecond

// listen answers with outcomes as they come.
func (a *API) listen(
	ctx context.Context, in *outcomesInput, c choice,
) (*huma.StreamResponse, error) {
	var place uint64
	if in.LastEventID != "" {
		var err error
		if place, err = strconv.ParseUint(in.LastEventID, 10, 64); err != nil {
			return nil, wrongField("header.Last-Event-ID", "want the id of an event of this stream")
		}
	}
	select {
	case a.listeners <- struct{}{}:
	default:
		return nil, problem(schema.TokenBusy, "too many listeners")
	}
	end, err := a.c.Log.join(ctx)
	if err != nil {
		<-a.listeners
		return nil, problem(codeUnavailable, err.Error())
	}
	if in.LastEventID == "" {
		place = end
	}
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		defer func() { a.c.Log.leave(); <-a.listeners }()
		r, w := humago.Unwrap(ctx)
		w.Header().Set("Content-Type", eventStream)
		if r.Method == http.MethodHead {
			return // a body written to such an answer goes nowhere, so no write would ever fail
		}
		defer a.meters.listens()()
		l := listener{
			log:    a.c.Log,
			choice: c,
			w:      w,
			rc:     http.NewResponseController(w),
			place:  place,
		}
		l.run(ctx.Context(), c.filters(a.c.Log.subjects))
	}}, nil
}

// filters are the subjects that a choice reads; empty: all.
func (c choice) filters(subjects schema.Subjects) (out []string) {
	if len(c.types) == 0 && c.provider == "" {
		return nil
	}
	types := c.types
	if len(types) == 0 {
		types = schema.Outcomes()
	}
	for _, t := range types {
		if t.PerUser() || c.user == "" {
			out = append(out, subjects.Filter(t, c.provider, c.user))
		}
	}
	return out
}

// listener is one answer that goes on.
type listener struct {
	log    *Log
	choice choice
	w      http.ResponseWriter
	rc     *http.ResponseController
	place  uint64 // sequence of the last outcome written, or passed over
}

// run writes until the caller leaves or does not read. The caller gets the remaining outcomes by
// Last-Event-ID.
func (l *listener) run(ctx context.Context, filters []string) {
	_ = l.rc.SetReadDeadline(time.Time{})
	// An id without data is the place where a caller comes back, before its first event too.
	if !l.write(fmt.Appendf(nil, "retry: 1000\nid: %d\n\n", l.place)) {
		return
	}
	tick := time.NewTicker(beat)
	defer tick.Stop()
	for {
		entries, more, behind := l.log.next(l.place)
		if behind {
			if !l.catchUp(ctx, filters) {
				return
			}
			continue
		}
		if len(entries) > 0 {
			if !l.send(entries) {
				return
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-l.log.done:
			return // another worker has the next outcomes
		case <-tick.C:
			if !l.write(fmt.Appendf(nil, ": \nid: %d\n\n", l.place)) {
				return
			}
		case <-more:
			select {
			case <-ctx.Done():
				return
			case <-time.After(gather):
			}
		}
	}
}

// send writes the chosen outcomes of some entries.
func (l *listener) send(entries []entry) bool {
	var text []byte
	for _, e := range entries {
		if l.choice.wants(e.event) {
			text = appendEvent(text, e)
		}
		l.place = e.sequence
	}
	return len(text) == 0 || l.write(text)
}

// catchUp reads from the stream the outcomes that are no longer in memory.
func (l *listener) catchUp(ctx context.Context, filters []string) bool {
	place, err := l.log.stored(ctx, l.place, filters, func(e entry) error {
		if !l.send([]entry{e}) {
			return http.ErrHandlerTimeout
		}
		return nil
	})
	l.place = place
	if err != nil {
		return false // the caller comes back, and goes on from its last event
	}
	return true
}

// write gives the caller writeLimit to take the text. A client that was removed meanwhile, or has
// other rights now, hears no more.
func (l *listener) write(text []byte) bool {
	if !l.choice.still() {
		return false
	}
	_ = l.rc.SetWriteDeadline(time.Now().Add(writeLimit))
	if _, err := l.w.Write(text); err != nil {
		return false
	}
	return l.rc.Flush() == nil
}

// appendEvent writes an outcome as the WHATWG's event stream format has it. JSON has no line break.
func appendEvent(to []byte, e entry) []byte {
	data, err := json.Marshal(OutcomeOf(e.event))
	if err != nil {
		return to // a decoded event encodes
	}
	to = fmt.Appendf(to, "id: %d\nevent: %s\ndata: ", e.sequence, e.event.Type)
	return append(append(to, data...), '\n', '\n')
}

// replay answers with the stored outcomes.
func (a *API) replay(in *outcomesInput, c choice) (*huma.StreamResponse, error) {
	q := consumers.Query{
		Since:    in.Since,
		Until:    in.Until,
		Types:    c.types,
		Provider: c.provider,
		User:     c.user,
	}
	if !q.Until.IsZero() && q.Until.Before(q.Since) {
		return nil, wrongField("query.until", "is before since")
	}
	select {
	case a.replays <- struct{}{}:
	default:
		return nil, problem(schema.TokenBusy, "too many callers read stored outcomes")
	}
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		defer func() { <-a.replays }()
		r, w := humago.Unwrap(ctx)
		w.Header().Set("Content-Type", ndjson)
		if r.Method == http.MethodHead {
			return
		}
		if err := a.lines(ctx.Context(), w, q, c); err != nil {
			// An answer that has begun can only end early: the caller sees that it is cut off.
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

func (a *API) lines(ctx context.Context, w http.ResponseWriter, q consumers.Query, c choice) error {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Time{})
	encoder := json.NewEncoder(w)
	read := 0
	for e, err := range a.c.Outcomes.Replay(ctx, q) {
		if read++; read%batch == 0 && !c.still() {
			return errors.New("the client was removed")
		}
		if isMalformed(err) {
			continue
		}
		if err != nil {
			return err
		}
		if !c.wants(e) {
			continue
		}
		_ = rc.SetWriteDeadline(time.Now().Add(writeLimit))
		if err := encoder.Encode(OutcomeOf(e)); err != nil {
			return err
		}
	}
	_ = rc.SetWriteDeadline(time.Now().Add(writeLimit)) // for the text not flushed yet
	return nil
}

// isMalformed reports whether one stored message is not an event: the rest goes on.
func isMalformed(err error) bool {
	_, ok := errors.AsType[*schema.Malformed](err)
	return ok
}
