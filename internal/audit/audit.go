// Package audit keeps a copy of the outcomes in a NATS account beside renewd's, out of the reach of
// the workers' password, and a chain of their digests in a file outside of NATS.
//
// renewd's account delivers each outcome once to one subject, by a consumer made there, and exports
// that subject alone. The copy is a stream in the other account, and takes from this subject alone.
// No user can publish into the copy. By their rights its users change and remove nothing, which
// keeps mistakes out. What a thief of one of their passwords does is shown by the chain.
package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/schema"
)

// Durable is the consumer of renewd's outcomes that fills the copy.
const Durable = "audit-copy"

// Subject is where the consumer Durable delivers to.
func Subject(s schema.Subjects) string {
	if s.Prefix() == "" {
		return "audit.copy"
	}
	return s.Prefix() + ".audit.copy"
}

// Source makes the consumer in renewd's account, or leaves it where it is. The consumer starts at
// the oldest outcome, so that a copy made later has all outcomes.
func Source(ctx context.Context, js jetstream.JetStream, s schema.Subjects) error {
	_, err := js.CreateOrUpdatePushConsumer(ctx, s.Name(schema.StreamOutcomes),
		jetstream.ConsumerConfig{
			Durable:        Durable,
			DeliverSubject: Subject(s),
			DeliverPolicy:  jetstream.DeliverAllPolicy,
			Description:    "the copy of the outcomes in the audit's account",
			AckPolicy:      jetstream.AckFlowControlPolicy,
			FlowControl:    true,
			IdleHeartbeat:  time.Second,
			MaxAckPending:  1000,
		})
	if err != nil {
		return fmt.Errorf("make consumer %s: %w", Durable, err)
	}
	return nil
}

// whole is an error if the consumer that fills the copy was changed and leaves outcomes out. A
// thief of the workers' password can change the consumer. A consumer that is not there yet is no
// error, since the copy then says that it never heard of its source.
func whole(ctx context.Context, js jetstream.JetStream, s schema.Subjects, api string) error {
	there, err := jetstream.NewWithAPIPrefix(js.Conn(), api)
	if err != nil {
		return err
	}
	c, err := there.PushConsumer(ctx, s.Name(schema.StreamOutcomes), Durable)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look at consumer %s: %w: may the audit's account do that? "+
			"Print the NATS server's settings again (nats config --audit)", Durable, err)
	}
	have := c.CachedInfo().Config
	if have.FilterSubject != "" || len(have.FilterSubjects) > 0 ||
		have.DeliverSubject != Subject(s) || have.DeliverPolicy != jetstream.DeliverAllPolicy {
		return fmt.Errorf("consumer %s was changed and leaves outcomes out of the copy: find out "+
			"who did it, as operator remove the consumer and run audit source, and compare the "+
			"copy with a chain (audit verify)", Durable)
	}
	return nil
}

// State is how a copy stands.
type State struct {
	Outcomes uint64    `json:"outcomes"` // in the copy
	Last     time.Time `json:"last"`     // when renewd stored the newest outcome in the copy
	Behind   uint64    `json:"behind"`   // stored and not copied, as far as the copy knows
	// Heard is how long ago the copy last heard of its source; negative: never.
	Heard time.Duration `json:"-"`
}

// Copy makes the stream in the audit's account, if missing, and returns the copy's state. The copy
// keeps each outcome for the time keep, whatever renewd's own stream does; 0: without an end. An
// existing stream stays as it is.
func Copy(
	ctx context.Context, js jetstream.JetStream, s schema.Subjects, api string, replicas int,
	keep time.Duration,
) (State, error) {
	// The copy has the name of the original: a reader of one can read the other.
	name := s.Name(schema.StreamOutcomes)
	copied, err := js.Stream(ctx, name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		copied, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name:        name,
			Description: "a copy of renewd's outcomes",
			Replicas:    replicas,
			MaxAge:      keep,
			DenyDelete:  true,
			DenyPurge:   true,
			AllowDirect: true,
			Sources: []*jetstream.StreamSource{{
				Name: name, External: &jetstream.ExternalStream{APIPrefix: api},
				Consumer: &jetstream.StreamConsumerSource{
					Name:           Durable,
					DeliverSubject: Subject(s),
				},
			}},
		})
	}
	if err != nil {
		return State{}, fmt.Errorf("copy of %s: %w", name, err)
	}
	info := copied.CachedInfo()
	if len(info.Sources) != 1 || len(info.Config.Subjects) > 0 {
		return State{}, fmt.Errorf("%s takes from somewhere else than from renewd's account: "+
			"is this the account of the audit?", name)
	}
	if err := whole(ctx, js, s, api); err != nil {
		return State{}, err
	}
	return State{
		Outcomes: info.State.Msgs, Last: info.State.LastTime,
		Behind: info.Sources[0].Lag, Heard: info.Sources[0].Active,
	}, nil
}
