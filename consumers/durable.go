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
	"github.com/renewd/renewd/internal/pull"
	"github.com/renewd/renewd/internal/runner"
	"github.com/renewd/renewd/schema"
)

// durable is a subscription whose place the server keeps, and looks after the server's durable.
type durable struct {
	Subscription
	config   runner.Config
	subjects schema.Subjects
	want     []string  // the durable's filters; empty: everything
	began    time.Time // when Subscribe was called

	mu      sync.Mutex
	made    time.Time // when the durable last seen was made
	floor   uint64    // all up to here was handled, by any process that shares the durable
	ordered bool      // one event at a time over all processes: the last event handled is the floor
}

// errFilters: the durable is for other events than asked for.
var errFilters = errors.New("the durable is for other events: use another Durable, " +
	"or set UpdateFilter to change it for all that share it")

// run handles events until ctx ends.
func (d *durable) run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	handle := d.config.Handler
	d.config.Handler = func(ctx context.Context, m *runner.Message) error {
		if !matches(d.want, m.Subject) {
			err := fmt.Errorf("subscribe as %s: %w: %s came, which is none of %v",
				d.Durable, errFilters, m.Subject, d.want)
			stop(err)
			return runner.Retry(err, 0)
		}
		of := d.seen()
		if err := handle(ctx, m); err != nil {
			return runner.Retry(err,
				min(time.Second<<min(max(m.Deliveries, 1)-1, 6), d.config.MaxDelay))
		}
		d.handled(m, of)
		return nil
	}
	d.config.Looked, d.config.Missing = d.looked, d.remake
	runner, err := runner.New(d.config)
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
	var wait pull.Backoff
	for {
		err := d.ensure(ctx, start)
		switch {
		case err == nil, ctx.Err() != nil:
			return nil
		case !passing(err):
			return fmt.Errorf("subscribe as %s: %w", d.Durable, err)
		case !wait.Waited():
			d.config.Logger.Warn("cannot subscribe yet, trying again", "stream", d.config.Stream,
				"consumer", d.Durable, "error", err)
		}
		if start.DeliverPolicy == jetstream.DeliverNewPolicy {
			// Once the durable is there, events stored meanwhile count, too.
			start.DeliverPolicy, start.OptStartTime = jetstream.DeliverByStartTimePolicy, &d.began
		}
		wait.Wait(ctx)
	}
}

// start is the durable to be made, at the beginning given to Subscribe. The server hands out as
// many unacknowledged events as are handled at a time. With one event at a time, no later event
// overtakes a redelivered event.
func (d *durable) start() jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		Durable:        d.Durable,
		FilterSubjects: d.want,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        30 * time.Second,
		MaxDeliver:     -1,
		MaxAckPending:  d.config.Slots,
		DeliverPolicy:  jetstream.DeliverNewPolicy,
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

// ensure makes the durable, or adjusts an existing durable to the subscription.
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

// create makes the durable. Its error says what rights are needed, because a server does not even
// answer a request without the right.
func (d *durable) create(
	ctx context.Context, c jetstream.ConsumerConfig,
) (jetstream.Consumer, error) {
	ctx, stop := context.WithTimeout(ctx, runner.LookupLimit)
	defer stop()
	made, err := d.config.JetStream.CreateConsumer(ctx, d.config.Stream, c)
	if err != nil {
		return nil, fmt.Errorf("make consumer %s of %s: %w (may this NATS user publish to "+
			"%sCONSUMER.CREATE.%s.%s.>? Else have it made by one that may)",
			d.Durable, d.config.Stream, err, pull.APIPrefix(d.config.JetStream), d.config.Stream,
			d.Durable)
	}
	return made, nil
}

// update gives an existing durable the filters and the concurrency of the subscription, as far as
// this process may.
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
		d.config.Logger.Warn("the durable allows another number of events under way",
			"consumer", d.Durable, "have", have.MaxAckPending, "want", d.config.Slots,
			"error", err)
	}
	return nil
}

// looked notes how far the durable is, for all processes that share the durable. A recreated
// durable counts from its own beginning.
func (d *durable) looked(i *jetstream.ConsumerInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !i.Created.Equal(d.made) {
		if !d.made.IsZero() && i.AckFloor.Stream > d.floor {
			d.config.Logger.Error("the durable was created again by another program, "+
				"later in the stream: what was stored between is missed", "consumer", d.Durable,
				"handled", d.floor, "begins_after", i.AckFloor.Stream,
				"hint", fmt.Sprintf("remove it and make it from sequence %d on", d.floor+1))
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

// seen is when the durable was made from which events now come.
func (d *durable) seen() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.made
}

// handled notes an event of the durable that was made at of. The event's number means nothing to
// another durable.
func (d *durable) handled(m *runner.Message, of time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ordered && d.made.Equal(of) {
		d.floor = max(d.floor, m.Sequence)
	}
}

// remake recreates a durable that vanished, from the last event handled. If the stream is younger
// than the durable was, nothing in the stream was handled, and the durable starts at the stream's
// beginning.
func (d *durable) remake(ctx context.Context) error {
	s, err := d.config.JetStream.Stream(ctx, d.config.Stream)
	if err != nil && d.APIPrefix != "" {
		return fmt.Errorf("%w: handled was all up to sequence %d",
			runner.ErrVanished, d.handledUpTo())
	}
	if err != nil {
		return fmt.Errorf("look up stream %s: %w", d.config.Stream, err)
	}
	i := *s.CachedInfo()
	d.mu.Lock()
	made, floor := d.made, d.floor
	d.mu.Unlock()
	what := "the durable vanished and is created again from where it was last seen: " +
		"events may come again"
	c := d.start()
	c.DeliverPolicy = jetstream.DeliverByStartSequencePolicy
	c.OptStartTime, c.OptStartSeq = nil, floor+1
	if i.Created.After(made) || floor > i.State.LastSeq {
		what = "the stream was created again and is read from its beginning: " +
			"what the old one held and was not handled is missed"
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverAllPolicy, 0
	}
	consumer, err := d.create(ctx, c)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // another process was faster
	}
	if err != nil {
		return fmt.Errorf("%w: %w", runner.ErrVanished, err)
	}
	// The stream may have been recreated between the two requests.
	if now, err := s.Info(ctx); err != nil || !now.Created.Equal(i.Created) {
		return errors.Join(errAnew, err,
			d.config.JetStream.DeleteConsumer(ctx, d.config.Stream, d.Durable))
	}
	d.config.Logger.Warn(what, "stream", d.config.Stream, "consumer", d.Durable, "handled", floor,
		"stored", i.State.LastSeq)
	d.looked(consumer.CachedInfo())
	return nil
}

// wasEverything reports whether a durable was made for every type by an older version of this
// package, which wrote out a list.
func (d *durable) wasEverything(have jetstream.ConsumerConfig) bool {
	listed := []schema.Type{
		schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed,
		schema.UserForgotten, schema.MessageRejected,
		schema.ProviderDegraded, schema.ProviderRecovered,
	}
	return len(d.Types) == 0 && d.Providers == nil &&
		equalFilters(have, filters(d.subjects, listed, d.Provider, d.User))
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

// matches reports whether a filter lets subject through. An empty list lets everything through.
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
