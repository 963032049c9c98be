package consumers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// outcomes is the stream that renewd's events are in, before a prefix.
const outcomes = "OUTCOMES"

// Subscription says which outcomes to receive. The zero value receives all, from now on, until the
// program ends.
type Subscription struct {
	// Prefix of the installation; usually empty.
	Prefix string
	// APIPrefix is under which name JetStream's API is imported into this connection's account,
	// such as "$JS.renewd.API", where renewd has an account of its own. It needs a Durable that was
	// made there. Empty: "$JS.API".
	APIPrefix string
	// Types of events. None: all outcomes.
	Types []schema.Type
	// Provider and User narrow it down. Empty: all. Provider events have no user, so User leaves
	// them out.
	Provider, User string

	// Durable names a place in the stream that the server keeps: after a restart, events go on
	// where they stopped, and several processes with the same name share them. Empty: the place is
	// this call's own and forgotten with it.
	Durable string
	// UpdateFilter lets this call change which events an existing durable is for, to its own Types,
	// Provider and User. It does so for every process that shares the durable: those that asked for
	// other events end with an error. Default: a durable that is for other events is an error.
	UpdateFilter bool
	// Since, StartAll for the oldest, or StartAt for the sequence in the stream, is where a new
	// subscription begins. Default: now. An existing durable goes on where it is.
	Since    time.Time
	StartAll bool
	StartAt  uint64
	// Concurrency is how many events are handled at a time, over all processes of a durable.
	// Default 1: in the order they happened. More needs a Durable.
	Concurrency int

	// Logger, Tracer and Meter. nil: nothing is recorded.
	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter
}

// Subscribe calls fn for each event until ctx ends; it then returns nil. It waits for a stream or a
// server that is not there yet, and goes on by itself after a lost connection. A durable that
// vanished is made anew from where this process last saw it, and a stream that was made anew is
// read from its beginning; both are logged as warnings, since events may come again.
//
// fn gets no event that was not asked for. Where another process gave the durable a filter that
// lets one through, it goes back to whoever wants it, and Subscribe ends with an error: two that
// want different events need two durables.
//
// Delivery is at least once: fn must not mind an event that it has seen. With a Durable, an error
// of fn brings the event again, with growing waits of up to a minute; with the default concurrency
// later ones wait for it. Without a Durable an error of fn ends the subscription and is returned.
// Events that are none of package schema's are logged and passed over. To keep state per user,
// compare the version in the data with the one you know and ignore what is older.
func Subscribe(ctx context.Context, nc *nats.Conn, s Subscription, fn func(context.Context, schema.Event) error) error {
	config, subjects, err := s.config(nc)
	if err != nil {
		return err
	}
	config.Handler = func(ctx context.Context, m *Message) error {
		e, err := subjects.Decode(m.Header, m.Data, arrival(m))
		if err != nil {
			config.Logger.Warn("passed over a message that is no event", "subject", m.Subject, "sequence", m.Sequence, "error", err)
			return nil
		}
		return fn(ctx, e)
	}
	if s.Durable != "" {
		return s.durable(config, subjects).run(ctx)
	}
	return s.follow(ctx, config, subjects)
}

// Prepare makes the durable of s, or holds an existing one against s, and reads nothing: so that
// the program that subscribes need not be allowed to make consumers. Errors are of settings that
// make no sense, of a durable that is for other events, and of the server.
func Prepare(ctx context.Context, nc *nats.Conn, s Subscription) error {
	if s.Durable == "" {
		return errors.New("prepare: Durable: missing")
	}
	config, subjects, err := s.config(nc)
	if err != nil {
		return err
	}
	d := s.durable(config, subjects)
	if err := d.ensure(ctx, d.start()); err != nil {
		return fmt.Errorf("prepare %s: %w", s.Durable, err)
	}
	return nil
}

// config is all but the handler of what runs s.
func (s Subscription) config(nc *nats.Conn) (Config, schema.Subjects, error) {
	subjects, err := s.check()
	if err != nil {
		return Config{}, subjects, fmt.Errorf("subscribe: %w", err)
	}
	js, err := jetStream(nc, s.APIPrefix)
	if err != nil {
		return Config{}, subjects, fmt.Errorf("subscribe: %w", err)
	}
	return Config{
		JetStream: js, Stream: subjects.Name(outcomes), Durable: s.Durable, Template: "outcome", Slots: max(1, s.Concurrency),
		Beat: 5 * time.Second, MaxDelay: time.Minute, Logger: s.Logger, Tracer: s.Tracer, Meter: s.Meter,
	}.WithDefaults(), subjects, nil
}

// jetStream is JetStream under an API prefix; empty: the usual one.
func jetStream(nc *nats.Conn, apiPrefix string) (jetstream.JetStream, error) {
	if apiPrefix == "" {
		return jetstream.New(nc)
	}
	return jetstream.NewWithAPIPrefix(nc, apiPrefix)
}

func (s Subscription) durable(config Config, subjects schema.Subjects) *durable {
	return &durable{Subscription: s, config: config, subjects: subjects, want: s.durableFilters(subjects), began: time.Now()}
}

func arrival(m *Message) schema.Arrival {
	return schema.Arrival{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time}
}

func (s Subscription) check() (schema.Subjects, error) {
	subjects, err := schema.NewSubjects(s.Prefix)
	switch {
	case err != nil:
		return subjects, err
	case s.Concurrency < 0, s.Concurrency > 1 && s.Durable == "":
		return subjects, fmt.Errorf("Concurrency: %d: want 1, or more with a Durable", s.Concurrency)
	case strings.ContainsAny(s.Durable, " \t\r\n\f.*>/\\"):
		return subjects, fmt.Errorf("Durable: %q: want no blanks, dots, slashes or wildcards", s.Durable)
	case s.starts() > 1:
		return subjects, errors.New("Since, StartAll and StartAt: want one of them")
	case s.APIPrefix != "" && s.Durable == "":
		return subjects, errors.New("APIPrefix: where renewd has an account of its own only a Durable can be read, which renewd's operator makes")
	}
	return subjects, checkFilter(s.Types, s.Provider, s.User)
}

// starts is how many places to begin at are given.
func (s Subscription) starts() (n int) {
	for _, given := range []bool{s.StartAll, s.StartAt > 0, !s.Since.IsZero()} {
		if given {
			n++
		}
	}
	return n
}

// checkFilter keeps ids out of subjects that would mean something else there.
func checkFilter(types []schema.Type, provider, user string) error {
	for _, t := range types {
		if !slices.Contains(schema.Outcomes(), t) {
			return fmt.Errorf("Types: %q is no outcome: want some of %v", t, schema.Outcomes())
		}
	}
	if provider != "" {
		if err := schema.CheckProvider(provider); err != nil {
			return fmt.Errorf("Provider: %w", err)
		}
	}
	if user != "" {
		if err := schema.CheckUser(user); err != nil {
			return fmt.Errorf("User: %w", err)
		}
	}
	if len(filters(schema.Subjects{}, types, provider, user)) == 0 {
		return fmt.Errorf("Types: none of %v is about one provider or user: leave Provider and User empty, or name other types", types)
	}
	return nil
}

// filters returns a filter per type. Types without a user, or a provider, are left out when one is
// asked for. For JetStream no filter means everything: checkFilter refuses what would leave none.
func filters(subjects schema.Subjects, types []schema.Type, provider, user string) []string {
	if len(types) == 0 {
		types = schema.Outcomes()
	}
	var out []string
	for _, t := range types {
		if user != "" && !t.PerUser() || provider != "" && t == schema.OperatorActed {
			continue
		}
		if f := subjects.Filter(t, provider, user); !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	slices.Sort(out)
	return out
}

// follow calls the handler for each event in order, from a place that only this call knows.
func (s Subscription) follow(ctx context.Context, c Config, subjects schema.Subjects) error {
	r := &reader{js: c.JetStream, stream: c.Stream, filters: filters(subjects, s.Types, s.Provider, s.User), since: s.Since, next: s.StartAt}
	defer r.close(ctx)
	placed := s.starts() > 0
	began := time.Now()
	var wait backoff
	for ctx.Err() == nil {
		var messages []*Message
		var err error
		if !placed {
			// A number rather than "new": so that nothing is missed if the connection is lost
			// before the first event.
			r.next, err = end(ctx, c.JetStream, c.Stream)
			if placed = err == nil; placed && wait.next > 0 {
				r.next, r.since = 0, began // what was stored since the stream is there counts, too
			}
		}
		if err == nil {
			messages, err = r.batch(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !passing(err):
			return fmt.Errorf("subscribe: %w", err)
		case err != nil:
			if wait.next == 0 || errors.Is(err, errAnew) {
				c.Logger.Warn("no events for now, trying again", "stream", c.Stream, "error", err)
			}
			wait.wait(ctx)
			continue
		}
		wait = backoff{}
		for _, m := range messages {
			if err := s.one(ctx, c, m); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// one handles one event of follow.
func (s Subscription) one(ctx context.Context, c Config, m *Message) error {
	ctx, span := startSpan(ctx, c.Tracer, c.Template, "", m)
	err := c.Handler(ctx, m)
	endSpan(span, verdictOf(err))
	return err
}

// end returns the sequence that the next message of a stream will have at least.
func end(ctx context.Context, js jetstream.JetStream, stream string) (uint64, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", stream, err)
	}
	return s.CachedInfo().State.LastSeq + 1, nil
}
