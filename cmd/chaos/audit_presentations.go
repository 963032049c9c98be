package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// reaction is how long after the provider's answer, or after a worker's death, an event still
// counts as its effect. The worker has to read, encrypt and store the answer, and shares two cores
// with everything else here.
const reaction = 750 * time.Millisecond

// reactionLate is reaction while a server is out of order. A pair refused by the store is parked
// after 250 ms, in a stream of servers busy with the same trouble.
const reactionLate = 2 * time.Second

// reactionNowhere is reaction while the store takes no pair and the streams have no leader either.
// The pair is then in the worker's memory alone, for as long as an election takes.
const reactionNowhere = 9 * time.Second

// electing is how long after a fault of a NATS server its streams may still elect leaders.
const electing = 15 * time.Second

// nowhere reports whether a pair that came at this time could be neither saved nor parked.
func (a *audit) nowhere(at time.Time) bool {
	during := func(server string, after time.Duration) bool {
		return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
			return x.lane == serverLane && strings.Contains(x.kind, server) &&
				x.from.Before(at.Add(reaction)) && x.over().Add(after).After(at)
		})
	}
	return during("PostgreSQL", 0) && during("NATS", electing)
}

// struck reports whether a worker died, or was stalled past its lease, while p was under way or
// just answered. A worker that stood still when the answer came read the answer later, if at all.
func (a *audit) struck(p shown) bool {
	answered, limit := p.At.Add(p.Took), reaction
	for _, x := range a.schedule.strikes {
		switch {
		case x.frozen && (p.by == x.worker || p.by == nil) &&
			x.from.Before(answered.Add(reaction)) && x.to.After(answered):
			answered = x.to
		case x.lane == serverLane && x.from.Before(answered.Add(reaction)) && x.over().After(p.At):
			limit = reactionLate
		}
	}
	if a.nowhere(answered) {
		limit = reactionNowhere
	}
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x.lost && (p.by == x.worker || p.by == nil) && !p.At.After(x.to) &&
			answered.Add(limit).After(x.from)
	})
}

// presentations checks the presentations seen by the providers.
func (a *audit) presentations() {
	twice := a.count("refresh tokens presented twice, other than a replay of an ambiguous one")
	overlap := a.count("presentations of one session's tokens at the same time, other than by a " +
		"worker stalled past its lease")
	revoked := a.count("sessions ended by reuse, other than by a replay of an ambiguous one")
	kept := a.count("pairs lost with a grace window of 30 s, of which nothing struck anybody " +
		"for 12 s")
	for _, p := range a.world.providers {
		for session, list := range p.seen.bySession() {
			for i, this := range list {
				a.facts.Presentations++
				if this.Verdict == standin.Renewed {
					a.facts.Renewals++
					if this.by != nil && a.struck(this) {
						a.facts.InFlight++
					}
				}
				if this.Verdict == standin.Replay {
					a.facts.Replays++
				}
				spent := this.Verdict == standin.Reuse || this.Verdict == standin.Replay
				if !spent {
					continue
				}
				why := a.explain(list[:i], this)
				if why == "" {
					twice.add("%s session %d of %s: %s", p.id, session, this.User,
						history(list, this.Generation))
					if this.Verdict == standin.Reuse {
						revoked.add("%s session %d of %s", p.id, session, this.User)
					}
				}
				if this.Verdict == standin.Reuse {
					switch {
					case p.grace && !a.calm(p, a.spent(list[:i], this)):
						a.facts.LostInStorm++
					case p.grace:
						kept.add("%s session %d of %s, spent at %s, shown again at %s (%s); "+
							"meanwhile: %s", p.id, session, this.User,
							a.spent(list[:i], this).Format(clockFormat),
							this.At.Format(clockFormat), why, a.during(a.spent(list[:i], this),
								this.At))
					case why == onTheWay:
						a.facts.LostOnTheWay++
					case why == withWorker:
						a.facts.LostWithWorker++
					}
				}
			}
			a.overlaps(overlap, p, list)
		}
	}
}

const (
	onTheWay   = "answer lost on the way"
	withWorker = "worker struck"
	standstill = "worker stood still"
	abandoned  = "call was given up before the provider read it"
)

// thawed reports whether p is its worker's first act after a standstill past the lease.
func (a *audit) thawed(p shown) bool {
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x.frozen && x.lost && (p.by == x.worker || p.by == nil) &&
			!p.At.Before(x.to.Add(-time.Second)) && p.At.Before(x.to.Add(reaction))
	})
}

// explain says why a spent token may be shown again. The answer that spent the token never arrived,
// or the worker died with the answer. Or the worker that shows the token stood still between its
// last look at the claim and the call.
func (a *audit) explain(before []shown, p shown) string {
	if a.thawed(p) {
		return standstill
	}
	// A busy provider reads a call after its caller has gone, and perhaps after the call that the
	// caller made next.
	if p.Lost && p.Took == 0 && p.by == nil {
		return abandoned
	}
	for _, q := range slices.Backward(before) {
		if !spends(q, p) {
			continue
		}
		switch {
		case q.Lost:
			return onTheWay
		case a.struck(q):
			return withWorker
		}
		return ""
	}
	return ""
}

// history lists the presentations of a token.
func history(list []shown, generation int) string {
	var all []string
	for _, p := range list {
		if p.Generation != generation && p.issued < generation {
			continue
		}
		by := "?"
		if p.by != nil {
			by = p.by.name
		}
		all = append(all, fmt.Sprintf("%d at %s for %v by %s: %s, lost %v", p.Generation,
			p.At.Format(clockFormat), p.Took.Round(time.Millisecond), by, p.Verdict, p.Lost))
	}
	return strings.Join(all, "; ")
}

// spent is when p's token was first taken.
func (a *audit) spent(before []shown, p shown) time.Time {
	for _, q := range before {
		if spends(q, p) {
			return q.At
		}
	}
	return time.Time{}
}

// spends reports whether q spent p's token. Either q presented p's token, or q was a replay of an
// earlier token and its answer replaced p's token.
func spends(q, p shown) bool {
	return q.issued > p.Generation &&
		(q.Generation == p.Generation || q.Generation < p.Generation && q.Verdict == standin.Replay)
}

// during lists the faults between two moments.
func (a *audit) during(from, to time.Time) string {
	var all []string
	for _, x := range a.schedule.strikes {
		if x.from.Before(to) && x.to.After(from) {
			all = append(all, fmt.Sprintf("%s %s-%s", x.kind, x.from.Format(clockFormat),
				x.to.Format(clockFormat)))
		}
	}
	return strings.Join(all, ", ")
}

// calm reports whether nothing struck the provider, a server or any worker for some stretch of the
// grace window of a token spent at from. The stretch must be long enough for a dead worker's
// message to come again.
func (a *audit) calm(p *standIn, from time.Time) bool {
	const step, enough = 100 * time.Millisecond, 12 * time.Second
	run := time.Duration(0)
	for at := from; at.Before(from.Add(30 * time.Second)); at = at.Add(step) {
		if run += step; a.disturbed(p, at, at.Add(step), nil) || a.workerStruck(at, at.Add(step)) {
			run = 0
		}
		if run >= enough {
			return true
		}
	}
	return false
}

func (a *audit) workerStruck(from, to time.Time) bool {
	return slices.ContainsFunc(a.schedule.strikes, func(x *strike) bool {
		return x.worker != nil && !x.unfelt && !x.from.After(to) && !x.to.Before(from)
	})
}

// noticed is how long a provider may take to see that a client has gone.
const noticed = 100 * time.Millisecond

func (a *audit) overlaps(c *count, p *standIn, list []shown) {
	for i := 1; i < len(list); i++ {
		before := list[i-1]
		if before.At.Add(before.Took-noticed).After(list[i].At) && !a.struck(before) {
			c.add("%s: %s at %s for %v, and at %s", p.id, before.User,
				before.At.Format(clockFormat), before.Took, list[i].At.Format(clockFormat))
		}
	}
}
