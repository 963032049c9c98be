package stream

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

// Action says what Apply does with one stream or consumer.
type Action string

// The actions. Left is a durable that the settings no longer name: it stays, and is reported.
const (
	Create    Action = "create"
	Update    Action = "update"
	Unchanged Action = "unchanged"
	Left      Action = "left"
)

// Changes is the way from what a server has to what a Topology wants. It prints as text (String)
// and as JSON.
type Changes struct {
	Items []Change `json:"changes"`
	// Force lets Apply make the changes that lose messages. What a server cannot change at all
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

	have     jetstream.StreamConfig // of a stream that is there
	stream   jetstream.StreamConfig
	consumer Consumer
}

// Difference is one setting that the server has otherwise.
type Difference struct {
	Field string `json:"field"` // as the server's own API names it
	Have  string `json:"have"`
	Want  string `json:"want"`
	// Refused says why the change is not made and what to do. Empty: it is made.
	Refused string `json:"refused,omitempty"`
	// Forcible: Changes.Force makes it all the same.
	Forcible bool `json:"forcible,omitempty"`
}

// Plan compares what the server has with want and changes nothing. Its error is about want or about
// the server not answering; ask Changes.Refusal whether the changes may be made.
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
	left, err := planLeft(ctx, js, want)
	if err != nil {
		return Changes{}, fmt.Errorf("plan consumers of %s: %w", want.Subjects.Name(Renewals), err)
	}
	changes.Items = append(changes.Items, left...)
	return changes, nil
}

func planStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig) (Change, error) {
	c := Change{Kind: "stream", Name: want.Name, Action: Create, stream: want}
	s, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	// What we do not compare (placement, compression, metadata …) stays as the operator set it.
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
	c.settle()
	return c, nil
}

// atWork is why a durable that workers read from keeps its filter: it would hand to workers of
// another version what only those of this one understand, and they reject what they do not.
const atWork = "a renewd of another version is at work on it, and would reject what this one adds: " +
	"stop it first, and do not run both side by side"

func planConsumer(ctx context.Context, js jetstream.JetStream, want Consumer) (Change, error) {
	c := Change{Kind: "consumer", Name: want.name(), Action: Create, consumer: want}
	have, err := js.Consumer(ctx, want.Stream, want.Config.Durable)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	// A pause is the provider's brake, not a setting: it stays.
	c.consumer.Config = have.CachedInfo().Config
	for _, f := range consumerFields() {
		if has, wanted := f.get(&c.consumer.Config), f.get(&want.Config); has != wanted {
			d := Difference{Field: f.name, Have: has, Want: wanted}
			// All that the stream takes is for workers who read commands: see OnlySenders.
			if f.name == filterField && wanted != allSubjects && have.CachedInfo().NumWaiting > 0 {
				d.Refused, d.Forcible = atWork, true
			}
			if f.fixed {
				d.Refused = fmt.Sprintf("a server cannot change it: delete the consumer (nats consumer rm %s %s), which loses no message, and apply again",
					want.Stream, want.Config.Durable)
			}
			c.Differences = append(c.Differences, d)
			f.copy(&c.consumer.Config, want.Config)
		}
	}
	c.settle()
	return c, nil
}

func (c *Change) settle() {
	c.Action = Unchanged
	if len(c.Differences) > 0 {
		c.Action = Update
	}
}

// planLeft finds the durables of providers that are no longer in the settings. Their messages may
// be wanted again.
func planLeft(ctx context.Context, js jetstream.JetStream, want Topology) ([]Change, error) {
	name := want.Subjects.Name(Renewals)
	s, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var left []Change
	names := s.ConsumerNames(ctx)
	for durable := range names.Name() {
		provider, ours := strings.CutPrefix(durable, renewPrefix)
		if !ours || slices.ContainsFunc(want.Providers, func(p Provider) bool { return p.ID == provider }) {
			continue
		}
		left = append(left, Change{Kind: "consumer", Name: name + "/" + durable, Action: Left, Note: fmt.Sprintf(
			"provider %s is not in the settings: nobody renews its grants. If that is for good: nats consumer rm %s %s", provider, name, durable)})
	}
	return left, names.Err()
}

func (c Consumer) name() string { return c.Stream + "/" + c.Config.Durable }

// Pending reports whether Apply has anything to do.
func (c Changes) Pending() bool {
	return slices.ContainsFunc(c.Items, func(i Change) bool { return i.Action == Create || i.Action == Update })
}

// OnlySenders reports whether all that is missing is what commands that name their sender need:
// their subjects, and that the durables take them. A worker can do without, as long as no service
// has a NATS account of its own.
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
			return d.Refused != "" || !commands(d.Have) || !slices.Contains(c.stream.Subjects, d.Have)
		case "filter_subject":
			return d.Want != allSubjects || !commands(d.Have)
		}
		return true
	})
}

// Refusal is nil if Apply may make all the changes; else it wraps ErrDestructive and says, for each
// one refused, what to do.
func (c Changes) Refusal() error {
	var errs []error
	for _, item := range c.Items {
		for _, d := range item.Differences {
			if d.Refused != "" && !(c.Force && d.Forcible) {
				errs = append(errs, fmt.Errorf("%s %s: %s is %s, the settings want %s: %s", item.Kind, item.Name, d.Field, d.Have, d.Want, d.Refused))
			}
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrDestructive, errors.Join(errs...))
}

// Apply makes the changes, or none of them if Refusal says no. Any number of workers may apply the
// same settings at once.
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

// Error codes of the server that have an answer of ours.
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
		return fmt.Errorf("%w: another stream of this account has our subjects: set a prefix, or remove that stream", err)
	}
	return err
}

// Ensure plans and applies in one go, as a worker does when it starts.
func Ensure(ctx context.Context, js jetstream.JetStream, want Topology) (Changes, error) {
	c, err := Plan(ctx, js, want)
	if err != nil {
		return c, err
	}
	return c, Apply(ctx, js, c)
}

// String is the plan for people: one line for each stream and consumer, one for each difference.
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
