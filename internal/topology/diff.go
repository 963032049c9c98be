package topology

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// streamField is a setting of a stream, compared by Plan.
type streamField struct {
	name string
	get  func(*jetstream.StreamConfig) string
	copy func(to *jetstream.StreamConfig, from jetstream.StreamConfig)
	// judge fills in why a change is refused, if so.
	judge judge
}

func streamFields() []streamField {
	type sc = jetstream.StreamConfig
	return []streamField{
		{
			"subjects", func(c *sc) string { return sorted(c.Subjects) },
			func(to *sc, from sc) { to.Subjects = from.Subjects }, subjectsGone,
		},
		{
			"retention", func(c *sc) string { return c.Retention.String() },
			func(to *sc, from sc) { to.Retention = from.Retention }, impossible,
		},
		{
			"storage", func(c *sc) string { return c.Storage.String() },
			func(to *sc, from sc) { to.Storage = from.Storage }, impossible,
		},
		{
			"num_replicas", func(c *sc) string { return fmt.Sprint(c.Replicas) },
			func(to *sc, from sc) { to.Replicas = from.Replicas }, fine,
		},
		{
			"discard", func(c *sc) string { return c.Discard.String() },
			func(to *sc, from sc) { to.Discard = from.Discard }, fine,
		},
		field("discard_new_per_subject", func(c *sc) *bool { return &c.DiscardNewPerSubject },
			fine),
		field("max_msgs", func(c *sc) *int64 { return &c.MaxMsgs },
			lowered(func(c sc) int64 { return c.MaxMsgs })),
		field("max_bytes", func(c *sc) *int64 { return &c.MaxBytes }, cutting),
		field("max_age", func(c *sc) *time.Duration { return &c.MaxAge },
			lowered(func(c sc) int64 { return int64(c.MaxAge) })),
		field("max_msgs_per_subject", func(c *sc) *int64 { return &c.MaxMsgsPerSubject },
			lowered(func(c sc) int64 { return c.MaxMsgsPerSubject })),
		field("max_msg_size", func(c *sc) *int32 { return &c.MaxMsgSize }, fine),
		field("duplicate_window", func(c *sc) *time.Duration { return &c.Duplicates }, fine),
		field("allow_direct", func(c *sc) *bool { return &c.AllowDirect }, fine),
		field("allow_rollup_hdrs", func(c *sc) *bool { return &c.AllowRollup }, fine),
		field("deny_delete", func(c *sc) *bool { return &c.DenyDelete },
			switchedOff(func(c sc) bool { return c.DenyDelete })),
		field("deny_purge", func(c *sc) *bool { return &c.DenyPurge },
			switchedOff(func(c sc) bool { return c.DenyPurge })),
		field("allow_msg_ttl", func(c *sc) *bool { return &c.AllowMsgTTL },
			switchedOff(func(c sc) bool { return c.AllowMsgTTL })),
		field("allow_msg_schedules", func(c *sc) *bool { return &c.AllowMsgSchedules },
			switchedOff(func(c sc) bool { return c.AllowMsgSchedules })),
		field("sealed", func(c *sc) *bool { return &c.Sealed },
			switchedOff(func(c sc) bool { return c.Sealed })),
	}
}

type judge = func(d *Difference, have jetstream.StreamInfo, want jetstream.StreamConfig)

// field is a setting reached by one pointer.
func field[T comparable](name string, at func(*jetstream.StreamConfig) *T, j judge) streamField {
	return streamField{
		name: name,
		get:  func(c *jetstream.StreamConfig) string { return fmt.Sprint(*at(c)) },
		copy: func(to *jetstream.StreamConfig, from jetstream.StreamConfig) {
			*at(to) = *at(&from)
		},
		judge: j,
	}
}

func sorted(list []string) string {
	s := slices.Clone(list)
	slices.Sort(s)
	return strings.Join(s, " ")
}

func fine(*Difference, jetstream.StreamInfo, jetstream.StreamConfig) {}

func impossible(d *Difference, _ jetstream.StreamInfo, want jetstream.StreamConfig) {
	d.Refused = fmt.Sprintf("a server cannot change it: if its messages may go, delete the "+
		"stream (nats stream rm %s) and apply again", want.Name)
}

// subjectsGone: messages stored under a removed subject stay, but its publishers find no stream any
// more.
func subjectsGone(d *Difference, have jetstream.StreamInfo, want jetstream.StreamConfig) {
	for _, s := range have.Config.Subjects {
		if !slices.Contains(want.Subjects, s) {
			d.Refused, d.Forcible = "its publishers would find no stream: stop them first, then "+
				"apply with force", true
			return
		}
	}
}

// lowered: the server deletes at once the messages beyond a lower limit. 0 and -1 mean no limit.
func lowered(of func(jetstream.StreamConfig) int64) judge {
	return func(d *Difference, have jetstream.StreamInfo, want jetstream.StreamConfig) {
		if h, w := of(have.Config), of(want); w > 0 && (h <= 0 || w < h) {
			d.Refused, d.Forcible = fmt.Sprintf("the server would delete what is beyond it at "+
				"once: back up %s if you need that, then apply with force", want.Name), true
		}
	}
}

// cutting: a stream may get a byte limit only while it is no larger than the limit.
func cutting(d *Difference, have jetstream.StreamInfo, want jetstream.StreamConfig) {
	if want.MaxBytes > 0 && have.State.Bytes > uint64(want.MaxBytes) {
		d.Refused = fmt.Sprintf("%s has %d bytes, and the server would delete what is beyond the "+
			"limit at once: set a higher one (outcome_bytes, command_bytes), or back the "+
			"stream up, then apply with force", want.Name, have.State.Bytes)
		d.Forcible = true
	}
}

func switchedOff(of func(jetstream.StreamConfig) bool) judge {
	return func(d *Difference, have jetstream.StreamInfo, want jetstream.StreamConfig) {
		if of(have.Config) && !of(want) {
			impossible(d, have, want)
		}
	}
}

// consumerField is a setting of a consumer, compared by Plan. A server cannot change a fixed
// setting.
type consumerField struct {
	name  string
	fixed bool
	get   func(*jetstream.ConsumerConfig) string
	copy  func(to *jetstream.ConsumerConfig, from jetstream.ConsumerConfig)
}

// AllSubjects stands for the filter of a consumer without a filter.
const AllSubjects = ">"

const (
	filterField = "filter_subject"
	policyField = "deliver_policy"
)

func consumerFields() []consumerField {
	type cc = jetstream.ConsumerConfig
	return []consumerField{
		{filterField, false, func(c *cc) string {
			if c.FilterSubject == "" && len(c.FilterSubjects) == 0 {
				return AllSubjects
			}
			return sorted(append([]string{c.FilterSubject}, c.FilterSubjects...))
		},
			func(to *cc, from cc) {
				to.FilterSubject, to.FilterSubjects = from.FilterSubject, from.FilterSubjects
			}},
		{
			"ack_policy", true, func(c *cc) string { return c.AckPolicy.String() },
			func(to *cc, from cc) { to.AckPolicy = from.AckPolicy },
		},
		{
			policyField, true, func(c *cc) string { return c.DeliverPolicy.String() },
			func(to *cc, from cc) { to.DeliverPolicy = from.DeliverPolicy },
		},
		{
			"ack_wait", false, func(c *cc) string { return c.AckWait.String() },
			func(to *cc, from cc) { to.AckWait = from.AckWait },
		},
		{
			"backoff", false, func(c *cc) string { return fmt.Sprint(c.BackOff) },
			func(to *cc, from cc) { to.BackOff = from.BackOff },
		},
		{
			"max_deliver", false, func(c *cc) string { return fmt.Sprint(c.MaxDeliver) },
			func(to *cc, from cc) { to.MaxDeliver = from.MaxDeliver },
		},
		{
			"max_ack_pending", false, func(c *cc) string { return fmt.Sprint(c.MaxAckPending) },
			func(to *cc, from cc) { to.MaxAckPending = from.MaxAckPending },
		},
		{"inactive_threshold", false, func(c *cc) string { return c.InactiveThreshold.String() },
			func(to *cc, from cc) { to.InactiveThreshold = from.InactiveThreshold }},
	}
}
