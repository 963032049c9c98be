package main

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/topology"
	"github.com/renewd/renewd/schema"
)

// count is a line of the result: an event that must not happen, and how often it happened.
type count struct {
	Name  string   `json:"name"`
	Found int      `json:"found"`
	Cases []string `json:"cases,omitempty"`
}

func (c *count) add(format string, args ...any) {
	c.Found++
	if len(c.Cases) < 10 {
		c.Cases = append(c.Cases, fmt.Sprintf(format, args...))
	}
}

// audit compares the provider's truth, the store, the streams and the commands with one another.
type audit struct {
	ended    map[string]bool // sessions ended by the provider; nil until needed
	world    *world
	people   *people
	schedule *schedule
	read     *readers
	heard    []outcome
	ids      map[string]bool // of all outcomes heard
	log      []outcome       // OUTCOMES, in order
	grants   map[string]grant.Grant
	counts   []*count
	facts    facts
	stopped  time.Time // when the workers were told to stop
}

// facts are the table's figures beside the counts.
type facts struct {
	Presentations int `json:"presentations"`
	Renewals      int `json:"renewals"`
	Replays       int `json:"replays"`
	Commands      int `json:"commands"`
	Logins        int `json:"logins"`
	Outcomes      int `json:"outcomes"`
	Reauth        int `json:"reauth_required"`
	Erasures      int `json:"erasures"`
	Repeated      int `json:"logins_repeated"`
	// presentations answered just before, or not yet
	InFlight       int `json:"in_flight_at_a_kill"`
	LostWithWorker int `json:"pairs_lost_by_a_kill"` // without a grace window
	LostOnTheWay   int `json:"pairs_lost_on_the_way_from_the_provider"`
	LostInStorm    int `json:"pairs_lost_with_a_grace_window_that_ended_before_the_servers_were_back"`
	ReadHTTP       int `json:"tokens_read_over_http"`
	ReadNATS       int `json:"tokens_read_over_nats"`
	ReadRefused    int `json:"token_reads_of_users_without_a_token"`
	ReadUnanswered int `json:"token_reads_not_answered"`
	Brought        int `json:"outcomes_that_the_webhook_got"` // some of them twice
	FromTable      int `json:"logins_taken_from_an_apps_table"`
	Suspended      int `json:"suspensions"`
}

// everything runs all checks, while nothing moves.
func (a *audit) everything(ctx context.Context, eyes *witness, s *sampler) {
	a.presentations()
	a.repeatsHarmless()
	a.callsBounded()
	a.renewedInTime()
	a.commandsAnswered()
	a.outcomes()
	a.verdicts(eyes)
	a.reads(a.read)
	a.agreement()
	a.store(ctx)
	a.traces(ctx)
	a.repairs(s)
	a.outside(ctx)
	a.facts.Erasures, a.facts.Repeated = a.people.erasures, len(a.people.repeats)
	a.facts.FromTable = a.people.outside
}

func (a *audit) count(name string) *count {
	c := &count{Name: name}
	a.counts = append(a.counts, c)
	return c
}

// load reads the store and OUTCOMES once nothing moves any more.
func (a *audit) load(ctx context.Context) error {
	s, closeStore, err := a.world.openStore(ctx)
	if err != nil {
		return err
	}
	defer closeStore()
	a.grants = map[string]grant.Grant{}
	for page, err := range grant.Pages(ctx, s) {
		if err != nil {
			return err
		}
		for _, g := range page {
			if g.Err != nil {
				return g.Err
			}
			a.grants[g.Provider+"/"+g.User] = g.Grant
		}
	}
	return a.eachOutcome(ctx, func(m jetstream.Msg, at schema.Arrival) error {
		e, err := schema.Subjects{}.Decode(schema.Header(m.Headers()), m.Data(), at)
		if err != nil {
			return fmt.Errorf("%s at sequence %d of %s: %w", at.Subject, at.Sequence, at.Stream,
				err)
		}
		o, err := read(e)
		a.log = append(a.log, o)
		return err
	})
}

// published reports whether all of the log has been heard.
func (a *audit) published(ids map[string]bool) bool {
	for _, o := range a.log {
		if !ids[o.id] {
			return false
		}
	}
	return true
}

// eachOutcome reads the audit log from its beginning to its present end.
func (a *audit) eachOutcome(
	ctx context.Context, see func(jetstream.Msg, schema.Arrival) error,
) error {
	s, err := a.world.js.Stream(ctx, topology.Outcomes)
	if err != nil {
		return err
	}
	last := s.CachedInfo().State.LastSeq
	if s.CachedInfo().State.Msgs == 0 {
		return nil
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return err
	}
	all, err := c.Messages()
	if err != nil {
		return err
	}
	defer all.Stop()
	for {
		m, err := all.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fmt.Errorf("read %s: %w", topology.Outcomes, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if err := see(m, schema.Arrival{
			Subject:  m.Subject(),
			Stream:   meta.Stream,
			Sequence: meta.Sequence.Stream,
			Time:     meta.Timestamp,
		}); err != nil {
			return err
		}
		if meta.Sequence.Stream >= last || meta.NumPending == 0 {
			return nil
		}
	}
}
