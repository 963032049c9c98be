package admin

import (
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/audit"
	"github.com/renewd/renewd/internal/settings"
	"github.com/renewd/renewd/internal/topology"
)

// Subscriber is a durable as `subscribers list` prints it.
type Subscriber struct {
	Name     string   `json:"name"`
	Outcomes []string `json:"outcomes"` // filters; empty: everything
	// Exceeds: the durable reads more than the setting senders lets its name read.
	Exceeds bool `json:"exceeds,omitempty"`
	// Handled is the sequence up to which all was handled. Waiting is how many outcomes are not
	// handed out yet, InHand how many are handed out and not answered. Again is how many of the
	// InHand outcomes came before.
	Handled uint64 `json:"handled"`
	Waiting uint64 `json:"waiting"`
	InHand  int    `json:"in_hand"`
	Again   int    `json:"redelivered"`
	// Connected: a subscriber asks for outcomes at this moment.
	Connected bool       `json:"connected"`
	LastAt    *time.Time `json:"last_handled_at,omitempty"`
}

// Exceeds reports whether a durable reads more than the settings let its name read.
func Exceeds(conf *settings.Settings, s Subscriber) bool {
	filters := make([]string, len(s.Outcomes))
	for i, filter := range s.Outcomes {
		filters[i] = strings.TrimPrefix(filter, conf.NATSPrefix+".")
	}
	if sink, ok := strings.CutPrefix(s.Name, topology.SinkPrefix); ok {
		if _, ours := conf.Sinks[sink]; ours {
			return false
		}
	}
	return s.Name != audit.Durable && conf.SenderRights().Exceeds(s.Name, filters)
}

// SubscriberOf is the durable in NATS' words.
func SubscriberOf(i *jetstream.ConsumerInfo) Subscriber {
	s := Subscriber{
		Name:      i.Name,
		Outcomes:  i.Config.FilterSubjects,
		Handled:   i.AckFloor.Stream,
		Waiting:   i.NumPending,
		InHand:    i.NumAckPending,
		Again:     i.NumRedelivered,
		Connected: i.NumWaiting > 0 || i.PushBound,
		LastAt:    i.AckFloor.Last,
	}
	if i.Config.FilterSubject != "" {
		s.Outcomes = []string{i.Config.FilterSubject}
	}
	return s
}
