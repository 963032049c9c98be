package consumers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
)

// Subscription says which outcomes to receive. The zero value receives all, from now on, until the
// program ends.
type Subscription struct {
	// Prefix of the installation; usually empty.
	Prefix string
	// APIPrefix is under which name JetStream's API is imported into this connection's account,
	// such as "$JS.renewd.API", where renewd has its own account. An APIPrefix needs a Durable made
	// in renewd's account. Empty: "$JS.API".
	APIPrefix string
	// Types of events. Empty: all outcomes.
	Types []schema.Type
	// Provider and User narrow the events down. Empty: all. Provider events have no user, so a User
	// leaves provider events out.
	Provider, User string
	// Providers are several, in the place of Provider.
	Providers []string

	// Durable names a place in the stream that the server keeps. After a restart, events go on from
	// there, and several processes with the same name share the events. Empty: the place is this
	// call's own and ends with the call.
	Durable string
	// UpdateFilter lets this call change which events an existing durable is for, to its own Types,
	// Provider, Providers and User. The change is for every process that shares the durable:
	// processes that asked for other events end with an error. Default: a durable for other events
	// is an error.
	UpdateFilter bool
	// Since, StartAll for the oldest, or StartAt for the sequence in the stream, is where a new
	// subscription begins. Default: now. An existing durable goes on where it is.
	Since    time.Time
	StartAll bool
	StartAt  uint64
	// Concurrency is how many events are handled at a time, over all processes of a durable.
	// Default 1: in the order of the stream. More needs a Durable.
	Concurrency int

	// Logger, Tracer and Meter. nil: nothing is recorded.
	Logger *slog.Logger
	Tracer trace.Tracer
	Meter  metric.Meter
}

// Subscribe calls fn for each event until ctx ends, and then returns nil. Subscribe waits for a
// stream or a server that is not there yet, and goes on by itself after a lost connection. A
// durable that vanished is recreated where this process last saw it. A recreated stream is read
// from its beginning. Both are logged as warnings, since events may come again.
//
// fn gets only events that were asked for. Another process may give the durable a filter that lets
// other events through. Such an event goes back for another process, and Subscribe ends with an
// error: two processes that want different events need two durables.
//
// Delivery is at least once, so fn must not mind an event seen before. With a Durable, an error of
// fn brings the event again, with growing waits of up to a minute. With the default concurrency
// later events wait meanwhile. Without a Durable an error of fn ends the subscription and is
// returned. Messages that are not events of package schema are logged and passed over. To keep
// state per user, compare the version in the data with the version you know and ignore older
// events.
func Subscribe(
	ctx context.Context, nc *nats.Conn, s Subscription,
	fn func(context.Context, schema.Event) error,
) error {
	config, subjects, err := s.config(nc)
	if err != nil {
		return err
	}
	config.Handler = func(ctx context.Context, m *runner.Message) error {
		e, err := subjects.Decode(m.Header, m.Data, arrival(m))
		if err != nil {
			config.Logger.Warn("passed over a message that is no event", "subject", m.Subject,
				"sequence", m.Sequence, "error", err)
			return nil
		}
		return fn(ctx, e)
	}
	if s.Durable != "" {
		return s.durable(config, subjects).run(ctx)
	}
	return s.follow(ctx, config, subjects)
}

// Prepare makes the durable of s, or adjusts an existing durable as Subscribe does, and reads
// nothing. The program that subscribes then needs no right to make consumers. An error says that
// the settings make no sense, that the durable is for other events, or that the server refused.
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

// config is the runner's settings for s, without the handler.
func (s Subscription) config(nc *nats.Conn) (runner.Config, schema.Subjects, error) {
	subjects, err := s.check()
	if err != nil {
		return runner.Config{}, subjects, fmt.Errorf("subscribe: %w", err)
	}
	js, err := jetStream(nc, s.APIPrefix)
	if err != nil {
		return runner.Config{}, subjects, fmt.Errorf("subscribe: %w", err)
	}
	return runner.Config{
		JetStream: js,
		Stream:    subjects.Name(schema.StreamOutcomes),
		Durable:   s.Durable,
		Template:  "outcome",
		Slots:     max(1, s.Concurrency),
		Beat:      5 * time.Second,
		MaxDelay:  time.Minute,
		Logger:    s.Logger,
		Tracer:    s.Tracer,
		Meter:     s.Meter,
	}.WithDefaults(), subjects, nil
}

// jetStream is JetStream under an API prefix; empty: the usual prefix.
func jetStream(nc *nats.Conn, apiPrefix string) (jetstream.JetStream, error) {
	if apiPrefix == "" {
		return jetstream.New(nc)
	}
	return jetstream.NewWithAPIPrefix(nc, apiPrefix)
}

func (s Subscription) durable(config runner.Config, subjects schema.Subjects) *durable {
	return &durable{
		Subscription: s,
		config:       config,
		subjects:     subjects,
		want:         s.fewest(subjects),
		began:        time.Now(),
	}
}

func arrival(m *runner.Message) schema.Arrival {
	return schema.Arrival{Subject: m.Subject, Stream: m.Stream, Sequence: m.Sequence, Time: m.Time}
}

func (s Subscription) check() (schema.Subjects, error) {
	subjects, err := schema.NewSubjects(s.Prefix)
	switch {
	case err != nil:
		return subjects, err
	case s.Concurrency < 0, s.Concurrency > 1 && s.Durable == "":
		return subjects, fmt.Errorf("Concurrency: %d: want 1, or more with a Durable",
			s.Concurrency)
	case strings.ContainsAny(s.Durable, " \t\r\n\f.*>/\\"):
		return subjects, fmt.Errorf("Durable: %q: want no blanks, dots, slashes or wildcards",
			s.Durable)
	case s.starts() > 1:
		return subjects, errors.New("Since, StartAll and StartAt: want one of them")
	case s.APIPrefix != "" && s.Durable == "":
		return subjects, errors.New("APIPrefix: where renewd has an account of its own only a " +
			"Durable can be read, which renewd's operator makes")
	}
	if len(s.Providers) > 0 && s.Provider != "" {
		return subjects, errors.New("Provider and Providers: want one of them")
	}
	if slices.Contains(s.Providers, "") {
		return subjects, errors.New("Providers: one is empty")
	}
	for _, provider := range s.providers() {
		if err = errors.Join(err, checkFilter(s.Types, provider, s.User)); err != nil {
			break
		}
	}
	return subjects, err
}

// providers are the providers asked for. An empty name stands for all.
func (s Subscription) providers() []string {
	if len(s.Providers) > 0 {
		return s.Providers
	}
	return []string{s.Provider}
}

// filters are the filters of a subscription by types.
func (s Subscription) filters(subjects schema.Subjects) (out []string) {
	for _, provider := range s.providers() {
		out = append(out, filters(subjects, s.Types, provider, s.User)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// fewest are the filters of a subscription, as few as can be: the server looks through every
// subject of the stream for a consumer with several filters. A subscription to every type does not
// list the types either: a later version of this package knows more types, and its durable must be
// the same.
func (s Subscription) fewest(subjects schema.Subjects) []string {
	if len(s.Types) > 0 {
		return s.filters(subjects)
	}
	prefix := subjects.Prefix()
	if prefix != "" {
		prefix += "."
	}
	var out []string
	for _, provider := range s.providers() {
		if provider == "" && s.User == "" {
			return nil
		}
		of := prefix + "*.*." + cmp.Or(provider, "*")
		if s.User != "" {
			out = append(out, of+"."+schema.EscapeUser(s.User))
		} else {
			out = append(out, of, of+".*")
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// starts counts the given places to begin at.
func (s Subscription) starts() (n int) {
	for _, given := range []bool{s.StartAll, s.StartAt > 0, !s.Since.IsZero()} {
		if given {
			n++
		}
	}
	return n
}

// checkFilter keeps ids out of subjects where they would mean something else.
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
		return fmt.Errorf("Types: none of %v is about one provider or user: "+
			"leave Provider and User empty, or name other types", types)
	}
	return nil
}

// filters returns a filter per type. A user leaves out the types without a user, a provider the
// types without a provider. For JetStream no filter means everything, so checkFilter refuses a
// choice without any filter left.
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
func (s Subscription) follow(ctx context.Context, c runner.Config, subjects schema.Subjects) error {
	r := &reader{
		js:      c.JetStream,
		stream:  c.Stream,
		filters: s.fewest(subjects),
		since:   s.Since,
		next:    s.StartAt,
	}
	defer r.close(ctx)
	placed := s.starts() > 0
	began := time.Now()
	var wait pull.Backoff
	for ctx.Err() == nil {
		var messages []*runner.Message
		var err error
		if !placed {
			// A number rather than "new": nothing must be missed if the connection is lost before
			// the first event.
			r.next, err = end(ctx, c.JetStream, c.Stream)
			if placed = err == nil; placed && wait.Waited() {
				r.next, r.since = 0, began // events stored during the wait count, too
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
			if !wait.Waited() || errors.Is(err, errAnew) {
				c.Logger.Warn("no events for now, trying again", "stream", c.Stream, "error", err)
			}
			wait.Wait(ctx)
			continue
		}
		wait = pull.Backoff{}
		for _, m := range messages {
			if err := c.Once(ctx, m); ctx.Err() != nil {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// end returns the lowest sequence that the next message of a stream can have.
func end(ctx context.Context, js jetstream.JetStream, stream string) (uint64, error) {
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return 0, fmt.Errorf("look up stream %s: %w", stream, err)
	}
	return s.CachedInfo().State.LastSeq + 1, nil
}
