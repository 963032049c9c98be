package consumers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/renewd/renewd/schema"
)

// durable is a subscription that keeps its place on the server, and looks after it.
type durable struct {
	Subscription
	config   Config
	subjects schema.Subjects
	want     []string  // the durable's filters; none: everything
	began    time.Time // when Subscribe was called

	mu      sync.Mutex
	made    time.Time // when the durable was made that was last seen
	floor   uint64    // all up to here was handled, by any process that shares it
	ordered bool      // one event is in hand at a time, over all processes: what was handled last is the floor
}

// errFilters: a durable is for other events than were asked for.
var errFilters = errors.New("the durable is for other events: use another Durable, or set UpdateFilter to change it for all that share it")

// errVanished: a durable is gone, and cannot be made anew.
var errVanished = errors.New("the durable vanished, and nothing is heard until it is back")

// run handles events until ctx ends.
func (d *durable) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	handle := d.config.Handler
	d.config.Handler = func(ctx context.Context, m *Message) error {
		if !matches(d.want, m.Subject) {
			err := fmt.Errorf("subscribe as %s: %w: %s came, which is none of %v", d.Durable, errFilters, m.Subject, d.want)
			stop(err)
			return Retry(err, 0)
		}
		of := d.seen()
		if err := handle(ctx, m); err != nil {
			return Retry(err, min(time.Second<<min(max(m.Deliveries, 1)-1, 6), d.config.MaxDelay))
		}
		d.handled(m, of)
		return nil
	}
	d.config.looked, d.config.missing = d.looked, d.remake
	runner, err := NewRunner(d.config)
	if err != nil {
		return err
	}
	if err := d.await(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	if err = runner.Run(ctx); err == nil && errors.Is(context.Cause(ctx), errFilters) {
		return context.Cause(ctx)
	}
	return err
}

// await waits until the durable is there, or ctx ends.
func (d *durable) await(ctx context.Context) error {
	start := d.start()
	var wait backoff
	for {
		err := d.ensure(ctx, start)
		switch {
		case err == nil, ctx.Err() != nil:
			return nil
		case !passing(err):
			return fmt.Errorf("subscribe as %s: %w", d.Durable, err)
		case wait.next == 0:
			d.config.Logger.Warn("cannot subscribe yet, trying again", "stream", d.config.Stream, "consumer", d.Durable, "error", err)
		}
		if start.DeliverPolicy == jetstream.DeliverNewPolicy {
			// Once it is there, what was stored meanwhile counts, too.
			start.DeliverPolicy, start.OptStartTime = jetstream.DeliverByStartTimePolicy, &d.began
		}
		wait.wait(ctx)
	}
}

// start is the durable to be made, where Subscribe was told to begin. As many events may be in hand
// as are handled at a time: with one, an event that comes again is not overtaken.
func (d *durable) start() jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		Durable: d.Durable, FilterSubjects: d.want, AckPolicy: jetstream.AckExplicitPolicy, AckWait: 30 * time.Second, MaxDeliver: -1,
		MaxAckPending: d.config.Slots, DeliverPolicy: jetstream.DeliverNewPolicy,
	}
	switch {
	case d.StartAll:
		c.DeliverPolicy = jetstream.DeliverAllPolicy
	case d.StartAt > 0:
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, d.StartAt
	case !d.Since.IsZero():
		c.DeliverPolicy, c.OptStartTime = jetstream.DeliverByStartTimePolicy, &d.Since
	}
	return c
}

// ensure makes the durable, or holds an existing one against what was asked for.
func (d *durable) ensure(ctx context.Context, start jetstream.ConsumerConfig) error {
	c, err := d.config.JetStream.Consumer(ctx, d.config.Stream, d.Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		if c, err = d.create(ctx, start); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := d.update(ctx, c.CachedInfo().Config); err != nil {
			return err
		}
	}
	d.looked(c.CachedInfo())
	return nil
}

// create says what to do about a server that does not even answer: it drops what a user may not ask
// for.
func (d *durable) create(ctx context.Context, c jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	ctx, stop := context.WithTimeout(ctx, lookupLimit)
	defer stop()
	made, err := d.config.JetStream.CreateConsumer(ctx, d.config.Stream, c)
	if err != nil {
		return nil, fmt.Errorf("make consumer %s of %s: %w (may this NATS user publish to %sCONSUMER.CREATE.%s.%s.>? Else have it made by one that may)",
			d.Durable, d.config.Stream, err, apiPrefix(d.config.JetStream), d.config.Stream, d.Durable)
	}
	return made, nil
}

// update gives an existing durable what was asked for, as far as that is this process's to say.
func (d *durable) update(ctx context.Context, have jetstream.ConsumerConfig) error {
	same := equalFilters(have, d.want)
	if !same && !d.UpdateFilter && !d.wasEverything(have) {
		return fmt.Errorf("%w: it is for %v, asked for was %v", errFilters, filtersOf(have), d.want)
	}
	if same && have.MaxAckPending == d.config.Slots {
		return nil
	}
	update := have
	update.FilterSubject, update.FilterSubjects, update.MaxAckPending = "", d.want, d.config.Slots
	if _, err := d.config.JetStream.UpdateConsumer(ctx, d.config.Stream, update); err != nil {
		if !same {
			return err
		}
		d.config.Logger.Warn("the durable allows another number of events in hand", "consumer", d.Durable, "have", have.MaxAckPending,
			"want", d.config.Slots, "error", err)
	}
	return nil
}

// looked notes how far the durable is, for all that share it. One that was made anew counts from
// its own beginning.
func (d *durable) looked(i *jetstream.ConsumerInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !i.Created.Equal(d.made) {
		if !d.made.IsZero() && i.AckFloor.Stream > d.floor {
			d.config.Logger.Error("the durable was made anew by somebody else, later in the stream: what was stored between is missed", "consumer", d.Durable,
				"handled", d.floor, "begins_after", i.AckFloor.Stream, "hint", fmt.Sprintf("remove it and make it from sequence %d on", d.floor+1))
		}
		d.made, d.floor = i.Created, 0
	}
	d.floor, d.ordered = max(d.floor, i.AckFloor.Stream), i.Config.MaxAckPending == 1
}

func (d *durable) handledUpTo() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.floor
}

// seen is which durable the events now come from.
func (d *durable) seen() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

// handled notes an event of the durable that was made at of: its number means nothing to another
// one.
func (d *durable) handled(m *Message, of time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ordered && d.made.Equal(of) {
		d.floor = max(d.floor, m.Sequence)
	}
}

// remake makes a durable anew that vanished: from what was handled last, or from the beginning of a
// stream that is younger than the durable was, since nothing in that was handled.
func (d *durable) remake(ctx context.Context) error {
	s, err := d.config.JetStream.Stream(ctx, d.config.Stream)
	if err != nil && d.APIPrefix != "" {
		return fmt.Errorf("%w: handled was all up to sequence %d", errVanished, d.handledUpTo())
	}
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", d.config.Stream, err)
	}
	i := *s.CachedInfo()
	d.mu.Lock()
	made, floor := d.made, d.floor
	d.mu.Unlock()
	c, what := d.start(), "the durable vanished and is made anew from where it was last seen: events may come again"
	c.DeliverPolicy, c.OptStartTime, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, nil, floor+1
	if i.Created.After(made) || floor > i.State.LastSeq {
		what = "the stream was made anew and is read from its beginning: what the old one held and was not handled is missed"
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverAllPolicy, 0
	}
	consumer, err := d.create(ctx, c)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // another process was faster
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errVanished, err)
	}
	if now, err := s.Info(ctx); err != nil || !now.Created.Equal(i.Created) { // made anew between the two
		return errors.Join(errAnew, err, d.config.JetStream.DeleteConsumer(ctx, d.config.Stream, d.Durable))
	}
	d.config.Logger.Warn(what, "stream", d.config.Stream, "consumer", d.Durable, "handled", floor, "stored", i.State.LastSeq)
	d.looked(consumer.CachedInfo())
	return nil
}

// durableFilters are those of a durable. One for every type has no list of them: a later version of
// this package knows more types, and its durable must be the same.
func (s Subscription) durableFilters(subjects schema.Subjects) []string {
	if len(s.Types) > 0 {
		return filters(subjects, s.Types, s.Provider, s.User)
	}
	if s.Provider == "" && s.User == "" {
		return nil
	}
	prefix := subjects.Prefix()
	if prefix != "" {
		prefix += "."
	}
	provider := s.Provider
	if provider == "" {
		provider = "*"
	}
	if s.User != "" {
		return []string{prefix + "*.*." + provider + "." + schema.EscapeUser(s.User)}
	}
	return []string{prefix + "*.*." + provider, prefix + "*.*." + provider + ".*"}
}

// wasEverything reports whether a durable was made for every type by a version of this package that
// wrote out a list.
func (d *durable) wasEverything(have jetstream.ConsumerConfig) bool {
	listed := []schema.Type{
		schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed, schema.UserForgotten, schema.MessageRejected,
		schema.ProviderDegraded, schema.ProviderRecovered,
	}
	return len(d.Types) == 0 && equalFilters(have, filters(d.subjects, listed, d.Provider, d.User))
}

func filtersOf(c jetstream.ConsumerConfig) []string {
	have := slices.Clone(c.FilterSubjects)
	if c.FilterSubject != "" {
		have = append(have, c.FilterSubject)
	}
	slices.Sort(have)
	return have
}

func equalFilters(c jetstream.ConsumerConfig, want []string) bool {
	return slices.Equal(filtersOf(c), want)
}

// matches reports whether one of the filters lets subject through; no filter lets everything.
func matches(filters []string, subject string) bool {
	return len(filters) == 0 || slices.ContainsFunc(filters, func(filter string) bool {
		want, have := strings.Split(filter, "."), strings.Split(subject, ".")
		for i, token := range want {
			switch {
			case token == ">":
				return len(have) > i
			case i >= len(have), token != "*" && token != have[i]:
				return false
			}
		}
		return len(want) == len(have)
	})
}
