package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/plain"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/sink"
	"github.com/renewd/renewd/internal/sink/sql"
	"github.com/renewd/renewd/internal/sink/webhook"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// Sinks are the sinks of an installation, for an operator.
type Sinks struct {
	conf     *settings.Settings
	bucket   sink.Bucket
	outcomes jetstream.Stream
}

// OpenSinks opens the stored state of the sinks.
func OpenSinks(ctx context.Context, js jetstream.JetStream, conf *settings.Settings) (*Sinks,
	error) {
	s := &Sinks{conf: conf}
	var err error
	if s.outcomes, err = js.Stream(ctx, conf.Subjects().Name(topology.Outcomes)); err != nil {
		return nil, err
	}
	s.bucket, err = sink.OpenBucket(ctx, js, conf.Subjects())
	return s, err
}

// Bucket is the stored state of the sinks.
func (s *Sinks) Bucket() sink.Bucket { return s.bucket }

// SinkLine is a sink as `sinks list` prints it.
type SinkLine struct {
	sink.Standing
	Kind   string `json:"kind"`
	Target string `json:"target"` // the target's host: the rest of an address may be secret
	// MissesErasures: no erasure can find a user's row in the app's table.
	MissesErasures bool `json:"misses_erasures,omitempty"`
}

// List gives the state of each sink in the settings at now.
func (s *Sinks) List(ctx context.Context, now time.Time) (lines []SinkLine, err error) {
	for _, name := range s.conf.SinkNames() {
		line, err := s.Look(ctx, name, now)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// Look gives the state of one sink at now.
func (s *Sinks) Look(ctx context.Context, name string, now time.Time) (SinkLine, error) {
	standing, err := s.bucket.Look(ctx, s.outcomes, name, now)
	of := s.conf.Sinks[name]
	return SinkLine{
		Standing: standing, Kind: of.Kind, Target: of.Target(),
		MissesErasures: of.Kind == settings.KindSQL && of.SQLConfig().MissesErasures(),
	}, err
}

// Knowledge is which receivers know of a user's last sign-out.
type Knowledge struct {
	Provider string `json:"provider"`
	User     string `json:"user"`
	// Outcome is the last user.reauth_required or user.signed_out; empty: no such outcome.
	Outcome  string      `json:"outcome,omitempty"`
	Type     schema.Type `json:"type,omitempty"`
	At       time.Time   `json:"at,omitzero"`
	Sequence uint64      `json:"sequence,omitempty"`
	Who      []Knower    `json:"who"`
}

// Knower is a receiver of outcomes, and whether it knows of the sign-out.
type Knower struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"` // "sink" or "subscriber"
	Knows bool   `json:"knows"`
	// At is when a sink's receiver acknowledged the outcome. For a subscriber there is no time.
	At  time.Time `json:"at,omitzero"`
	Why string    `json:"why,omitempty"` // the receiver does not know
}

// WhoKnows tells which receivers have acknowledged a user's last sign-out. A sink's answer is of
// its receiver. A subscriber's answer says that its durable has no such outcome left to handle.
func (s *Sinks) WhoKnows(ctx context.Context, k grant.Key) (Knowledge, error) {
	known := Knowledge{Provider: k.Provider, User: k.User}
	for _, of := range []schema.Type{schema.UserReauthRequired, schema.UserSignedOut} {
		m, err := s.outcomes.GetLastMsgForSubject(ctx,
			s.conf.Subjects().Of(schema.Address{Type: of, Provider: k.Provider, User: k.User}))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return known, err
		}
		if m.Sequence > known.Sequence {
			known.Sequence, known.Type, known.At = m.Sequence, of, m.Time.UTC()
			known.Outcome = schema.Header(m.Header).Get("ce-id")
		}
	}
	if known.Sequence == 0 {
		return known, nil
	}
	list := s.outcomes.ListConsumers(ctx)
	for c := range list.Info() {
		one, err := s.knower(ctx, c, known)
		if err != nil {
			return known, err
		}
		if one.Name != "" {
			known.Who = append(known.Who, one)
		}
	}
	slices.SortFunc(known.Who, func(a, b Knower) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.Name, b.Name))
	})
	return known, list.Err()
}

// knower tells of one durable whether the outcome was handled; without a name: the durable does not
// receive the outcome.
func (s *Sinks) knower(ctx context.Context, c *jetstream.ConsumerInfo, of Knowledge) (Knower,
	error) {
	name, isSink := strings.CutPrefix(c.Name, topology.SinkPrefix)
	if c.Config.Durable == "" || !receives(c, s.conf.Subjects(), of) {
		return Knower{}, nil
	}
	if !isSink {
		one := Knower{Name: c.Name, Kind: "subscriber", Knows: c.AckFloor.Stream >= of.Sequence}
		if !one.Knows {
			one.Why = "not handled yet"
		}
		return one, nil
	}
	one := Knower{Name: name, Kind: "sink"}
	told, err := s.bucket.ToldOf(ctx, name, of.Provider, of.User)
	switch {
	case err != nil:
		return one, err
	case told != nil && told.Sequence >= of.Sequence && told.Withheld:
		one.Why = "held back for good, at " + plain.Clock(told.At)
	case told != nil && told.Sequence >= of.Sequence:
		one.Knows, one.At = true, told.At
	case told != nil && !told.Withheld:
		one.Why = fmt.Sprintf("not acknowledged; an earlier one was, at %s", plain.Clock(told.At))
	default:
		one.Why = "not acknowledged"
	}
	return one, nil
}

// receives reports whether a durable's filters let the outcome through.
func receives(c *jetstream.ConsumerInfo, subjects schema.Subjects, of Knowledge) bool {
	filters := SubscriberOf(c).Outcomes
	if len(filters) == 0 {
		return true
	}
	subject := strings.Split(subjects.Of(schema.Address{Type: of.Type, Provider: of.Provider,
		User: of.User}), ".")
	return slices.ContainsFunc(filters, func(filter string) bool {
		parts := strings.Split(filter, ".")
		for i, part := range parts {
			switch {
			case part == ">":
				return true
			case i >= len(subject), part != "*" && part != subject[i]:
				return false
			}
		}
		return len(parts) == len(subject)
	})
}

// lagging is how old a sink's undelivered outcome may be before the doctor warns.
const lagging = 5 * time.Minute

// sinks looks for sinks that are stopped, lag, or have given outcomes up.
func (x *examination) sinks(ctx context.Context) Finding {
	conf := x.on.Conf
	if len(conf.Sinks) == 0 {
		return Finding{State: Fine, Found: "none in the settings"}
	}
	s, err := OpenSinks(ctx, x.on.JS, conf)
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	lines, err := s.List(ctx, x.on.Engine.Now())
	if err != nil {
		return failed(err, "the streams must be there: see above")
	}
	f := Finding{State: Fine, Found: plain.Counted(len(lines), "sink", "sinks")}
	var wrong []string
	for _, line := range lines {
		if word := line.trouble(); word != "" {
			wrong = append(wrong, line.Name+": "+word)
		}
	}
	if len(wrong) == 0 {
		f.Found += ", nothing waits for longer than " + settings.FormatDuration(lagging)
		return f
	}
	f.State, f.Found = Warning, strings.Join(wrong, "; ")
	f.Advice = fmt.Sprintf("%s sinks show NAME says more; sinks resume NAME and sinks retry "+
		"NAME once the receiver is in order. Renewals go on", x.program)
	return f
}

// trouble is what is wrong with a sink; empty if all is well.
func (l SinkLine) trouble() string {
	var words []string
	switch l.State {
	case sink.Live:
	case sink.Paused:
		words = append(words, fmt.Sprintf("paused by %s since %s", l.By, plain.Clock(l.Since)))
	case "idle":
		words = append(words, "no renewd runs it")
	default:
		words = append(words, fmt.Sprintf("%s since %s%s", l.State, plain.Clock(l.Since),
			plain.InBrackets(l.Reason)))
	}
	if l.MissesErasures {
		words = append(words, "an erasure cannot find a user's row, and the user's token stays in "+
			"it: have a column hold the field user")
	}
	if l.Dead > 0 {
		words = append(words, plain.Counted(l.Dead, "dead letter", "dead letters"))
	}
	if lag := time.Duration(l.LagSeconds * float64(time.Second)); lag > lagging {
		words = append(words,
			settings.FormatDuration(lag.Truncate(time.Second))+" behind"+plain.InBrackets(l.Reason))
	}
	return strings.Join(words, ", ")
}

// PlanSink is the statements missing in the database of a sink of kind sql, for the database's
// owner to run.
func PlanSink(ctx context.Context, s settings.Sink) ([]string, error) {
	to, err := sql.New(s.SQLConfig(), nil)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	ctx, stop := context.WithTimeout(ctx, checkLimit)
	defer stop()
	return to.Plan(ctx)
}

// SinkKeys is the JWK Set that verifies the Security Event Tokens of a sink, for its receiver.
func SinkKeys(s settings.Sink) ([]byte, error) { return webhook.PublicKeys(s.SETKey) }
