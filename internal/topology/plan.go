package topology

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// ErrDestructive is wrapped by the error about changes that would lose messages or that a server
// cannot make.
var ErrDestructive = errors.New("destructive change refused")

// Action says how Apply treats a stream or consumer.
type Action string

// The actions. Left is a durable that the settings no longer name: the durable stays, and is
// reported.
const (
	Create    Action = "create"
	Update    Action = "update"
	Unchanged Action = "unchanged"
	Left      Action = "left"
)

// Changes is the way from the present state of a server to a Topology. Changes prints as text
// (String) and as JSON.
type Changes struct {
	Items []Change `json:"changes"`
	// Force lets Apply make the changes that lose messages. A change that a server cannot make
	// stays refused.
	Force bool `json:"-"`
}

// Change is about one stream or consumer.
type Change struct {
	Kind        string       `json:"kind"` // "stream" or "consumer"; a bucket is a stream
	Name        string       `json:"name"` // of a consumer: stream/durable
	Action      Action       `json:"action"`
	Differences []Difference `json:"differences,omitempty"`
	Note        string       `json:"note,omitempty"`

	have     jetstream.StreamConfig // of an existing stream
	stream   jetstream.StreamConfig
	consumer Consumer
}

// Difference is a setting that differs on the server.
type Difference struct {
	Field string `json:"field"` // as in the server's own API
	Have  string `json:"have"`
	Want  string `json:"want"`
	// Refused says why the change is not made and what to do. Empty: the change is made.
	Refused string `json:"refused,omitempty"`
	// Forcible: Changes.Force makes the change even so.
	Forcible bool `json:"forcible,omitempty"`
}

// Plan compares the server with want and changes nothing. Its error is about want or about the
// server not answering; ask Changes.Refusal whether the changes may be made.
func Plan(ctx context.Context, js jetstream.JetStream, want Topology) (Changes, error) {
	want = want.WithDefaults()
	if err := want.Validate(); err != nil {
		return Changes{}, fmt.Errorf("plan streams: %w", err)
	}
	var changes Changes
	for _, config := range want.Streams() {
		c, err := planStream(ctx, js, config)
		if err != nil {
			return Changes{}, fmt.Errorf("plan stream %s: %w", config.Name, err)
		}
		changes.Items = append(changes.Items, c)
	}
	for _, consumer := range want.Consumers() {
		c, err := planConsumer(ctx, js, consumer)
		if err != nil {
			return Changes{}, fmt.Errorf("plan consumer %s: %w", consumer.name(), err)
		}
		changes.Items = append(changes.Items, c)
	}
	for _, of := range want.leavings() {
		left, err := of.plan(ctx, js)
		if err != nil {
			return Changes{}, fmt.Errorf("plan consumers of %s: %w", of.stream, err)
		}
		changes.Items = append(changes.Items, left...)
	}
	return changes, nil
}

func planStream(
	ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig,
) (Change, error) {
	c := Change{Kind: "stream", Name: want.Name, Action: Create, stream: want}
	s, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	// Settings not compared (placement, compression, metadata …) stay as the operator set them.
	c.have = s.CachedInfo().Config
	c.stream = c.have
	for _, f := range streamFields() {
		if have, wanted := f.get(&c.stream), f.get(&want); have != wanted {
			d := Difference{Field: f.name, Have: have, Want: wanted}
			f.judge(&d, *s.CachedInfo(), want)
			c.Differences = append(c.Differences, d)
			f.copy(&c.stream, want)
		}
	}
	c.setAction()
	return c, nil
}

// atWork is why a durable with reading workers keeps its filter. A new filter would hand workers of
// another version messages that only workers of this version understand, and the other workers
// would reject them.
const atWork = "a renewd of another version is at work on it, and would reject what this " +
	"one adds: stop it first, and do not run both side by side"

func planConsumer(ctx context.Context, js jetstream.JetStream, want Consumer) (Change, error) {
	c := Change{Kind: "consumer", Name: want.name(), Action: Create, consumer: want}
	have, err := js.Consumer(ctx, want.Stream, want.Config.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) ||
		errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	// A pause is the provider's brake, not a setting: the pause stays.
	c.consumer.Config = have.CachedInfo().Config
	ofSink := strings.HasPrefix(want.Config.Durable, SinkPrefix)
	for _, f := range consumerFields() {
		if ofSink && f.name == policyField {
			continue // a sink's place in the stream is moved by a replay
		}
		if has, wanted := f.get(&c.consumer.Config), f.get(&want.Config); has != wanted {
			d := Difference{Field: f.name, Have: has, Want: wanted}
			// Only the durables of commands want AllSubjects: see OnlySenders.
			if f.name == filterField && !ofSink && wanted != AllSubjects &&
				have.CachedInfo().NumWaiting > 0 {
				d.Refused, d.Forcible = atWork, true
			}
			if f.fixed {
				d.Refused = fmt.Sprintf("a server cannot change it: delete the consumer (nats "+
					"consumer rm %s %s), which loses no message, and apply again",
					want.Stream, want.Config.Durable)
			}
			c.Differences = append(c.Differences, d)
			f.copy(&c.consumer.Config, want.Config)
		}
	}
	c.setAction()
	return c, nil
}

func (c *Change) setAction() {
	c.Action = Unchanged
	if len(c.Differences) > 0 {
		c.Action = Update
	}
}

// leaving is the durables of one stream that may stay behind when the settings no longer name them.
// Their messages may be wanted again.
type leaving struct {
	stream string
	prefix string // of the durables' names
	known  []string
	note   string // what a left durable means, and how to remove it
}

func (t Topology) leavings() []leaving {
	of := leaving{
		stream: t.Subjects.Name(Renewals), prefix: RenewPrefix,
		note: "provider %s is not in the settings: its grants are not renewed. " +
			"If that is for good: nats consumer rm %s %s",
	}
	for _, p := range t.Providers {
		of.known = append(of.known, p.ID)
	}
	to := leaving{
		stream: t.Subjects.Name(Outcomes), prefix: SinkPrefix,
		note: "sink %s is not in the settings: its outcomes wait. " +
			"If that is for good: nats consumer rm %s %s",
	}
	for _, s := range t.Sinks {
		to.known = append(to.known, s.Name)
	}
	return []leaving{of, to}
}

func (l leaving) plan(ctx context.Context, js jetstream.JetStream) ([]Change, error) {
	s, err := js.Stream(ctx, l.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var left []Change
	names := s.ConsumerNames(ctx)
	for durable := range names.Name() {
		name, ours := strings.CutPrefix(durable, l.prefix)
		if !ours || slices.Contains(l.known, name) {
			continue
		}
		left = append(left, Change{
			Kind: "consumer", Name: l.stream + "/" + durable, Action: Left,
			Note: fmt.Sprintf(l.note, name, l.stream, durable),
		})
	}
	return left, names.Err()
}

func (c Consumer) name() string { return c.Stream + "/" + c.Config.Durable }

// Pending reports whether Apply has anything to do.
func (c Changes) Pending() bool {
	return slices.ContainsFunc(c.Items, func(i Change) bool {
		return i.Action == Create || i.Action == Update
	})
}

// OnlySenders reports whether only the subjects and filters for commands that name their sender are
// missing. A worker can do without these, as long as no service has its own NATS account.
func (c Changes) OnlySenders() bool {
	for _, i := range c.Items {
		if i.Action == Create || i.Action == Update && !i.onlySenders() {
			return false
		}
	}
	return c.Pending()
}

func (c Change) onlySenders() bool {
	commands := func(subjects string) bool {
		return slices.ContainsFunc(schema.Commands(), func(of schema.Type) bool {
			return strings.HasSuffix(subjects, string(of)+".>")
		})
	}
	return !slices.ContainsFunc(c.Differences, func(d Difference) bool {
		switch d.Field {
		case "subjects":
			return d.Refused != "" || !commands(d.Have) ||
				!slices.Contains(c.stream.Subjects, d.Have)
		case "filter_subject":
			return d.Want != AllSubjects || !commands(d.Have)
		}
		return true
	})
}

// Refusal is nil if Apply may make all the changes. Otherwise it wraps ErrDestructive and says, for
// each refused change, what to do.
func (c Changes) Refusal() error {
	var errs []error
	for _, item := range c.Items {
		for _, d := range item.Differences {
			if d.Refused != "" && !(c.Force && d.Forcible) {
				errs = append(errs, fmt.Errorf("%s %s: %s is %s, the settings want %s: %s",
					item.Kind, item.Name, d.Field, d.Have, d.Want, d.Refused))
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrDestructive, errors.Join(errs...))
}

// Apply makes the changes, or no change at all if Refusal says no. Any number of workers may apply
// the same settings at once.
func Apply(ctx context.Context, js jetstream.JetStream, c Changes) error {
	if err := c.Refusal(); err != nil {
		return err
	}
	for _, item := range c.Items {
		if err := item.apply(ctx, js); err != nil {
			return fmt.Errorf("%s %s %s: %w", item.Action, item.Kind, item.Name, explain(err))
		}
	}
	return nil
}

func (c Change) apply(ctx context.Context, js jetstream.JetStream) (err error) {
	switch {
	case c.Action == Create && c.Kind == "stream":
		_, err = js.CreateStream(ctx, c.stream)
	case c.Action == Update && c.Kind == "stream":
		_, err = js.UpdateStream(ctx, c.stream)
	case c.Action == Create:
		_, err = js.CreateConsumer(ctx, c.consumer.Stream, c.consumer.Config)
	case c.Action == Update:
		_, err = js.UpdateConsumer(ctx, c.consumer.Stream, c.consumer.Config)
	}
	return err
}

// Error codes of the server for which explain has advice.
const (
	codeReplicasAlone jetstream.ErrorCode = 10074
	codeOverlap       jetstream.ErrorCode = 10065
	codeNoRoom        jetstream.ErrorCode = 10047
)

func explain(err error) error {
	api, ok := errors.AsType[*jetstream.APIError](err)
	switch {
	case ok && api.ErrorCode == codeReplicasAlone:
		return fmt.Errorf("%w: this NATS server is no cluster: set replicas to 1", err)
	case ok && api.ErrorCode == codeNoRoom:
		return fmt.Errorf("%w: the NATS server may not use that much of its disk: "+
			"lower outcome_bytes and command_bytes, or raise its max_file_store", err)
	case ok && api.ErrorCode == codeOverlap:
		return fmt.Errorf("%w: another stream of this account has our subjects: set a prefix, or "+
			"remove that stream", err)
	}
	return err
}

// Ensure plans and applies in one call, as a worker does at its start.
func Ensure(ctx context.Context, js jetstream.JetStream, want Topology) (Changes, error) {
	c, err := Plan(ctx, js, want)
	if err != nil {
		return c, err
	}
	return c, Apply(ctx, js, c)
}

// String is the plan for people: a line for each stream and consumer, and a line for each
// difference.
func (c Changes) String() string {
	marks := map[Action]string{Create: "+", Update: "~", Unchanged: "=", Left: "!"}
	var b strings.Builder
	for _, i := range c.Items {
		fmt.Fprintf(&b, "%s %-9s %s %s\n", marks[i.Action], i.Action, i.Kind, i.Name)
		for _, d := range i.Differences {
			fmt.Fprintf(&b, "    %s: %s -> %s\n", d.Field, d.Have, d.Want)
			if d.Refused != "" {
				fmt.Fprintf(&b, "      refused: %s\n", d.Refused)
			}
		}
		if i.Note != "" {
			fmt.Fprintf(&b, "    %s\n", i.Note)
		}
	}
	return b.String()
}
