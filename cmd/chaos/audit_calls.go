package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/standin"
)

// calls are all userinfo calls to a provider.
type calls struct {
	mu  sync.Mutex
	all []standin.Call
}

func (c *calls) add(one standin.Call) {
	c.mu.Lock()
	c.all = append(c.all, one)
	c.mu.Unlock()
}

// byUser is when each user was asked for, in order.
func (c *calls) byUser() map[string][]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string][]time.Time{}
	for _, one := range c.all {
		out[one.User] = append(out[one.User], one.At)
	}
	for _, times := range out {
		slices.SortFunc(times, time.Time.Compare)
	}
	return out
}

// Of a user, in any stretch of this length, there may be one call for each floor of the policy, one
// for each command, and a few for repeated deliveries.
const (
	stretch   = 5 * time.Second
	repeated  = 3
	answersIn = 15 * time.Second // so long after a command its call may come
)

// callsBounded looks for storms, which are too many calls to a provider for a single user.
func (a *audit) callsBounded() {
	tokens := a.count("users whose tokens were presented more often than the policy's floor allows")
	profiles := a.count("users whose profile was asked for more often than the policy's " +
		"floor allows")
	idle := a.count("users whose profile was asked for more often than renewals and commands " +
		"account for, in calm")
	commands := a.sent()
	for id, p := range a.world.providers {
		presented, renewed := map[string][]time.Time{}, map[string][]time.Time{}
		latest := map[string]shown{}
		for _, shown := range p.seen.list() {
			before := latest[shown.User]
			if latest[shown.User] = shown; !shown.again(before) {
				presented[shown.User] = append(presented[shown.User], shown.At)
			}
			if shown.Verdict == standin.Renewed {
				renewed[shown.User] = append(renewed[shown.User], shown.At)
			}
		}
		asked := p.asked.byUser()
		for _, x := range a.people.all {
			if x.provider != p {
				continue
			}
			wanted := commands[x.key()]
			if text := a.storm(presented[x.name], wanted); text != "" {
				tokens.add("%s of %s: %s", x.name, id, text)
			}
			if text := a.storm(asked[x.name], wanted); text != "" {
				profiles.add("%s of %s: %s", x.name, id, text)
			}
			if text := a.idle(p, asked[x.name], wanted, renewed[x.name]); text != "" {
				idle.add("%s of %s: %s", x.name, id, text)
			}
		}
	}
}

// sent is when each user's commands were sent, those of token reads among them: an app that reads
// a token may have it renewed, or a login proven. Each such request is told by an outcome, also
// where the app got no token.
func (a *audit) sent() map[string][]time.Time {
	times := map[string][]time.Time{}
	for _, c := range a.people.commands {
		times[c.who.key()] = append(times[c.who.key()], c.sent)
	}
	counted := map[cause]bool{}
	for _, o := range a.heard {
		user := o.provider + "/" + o.user
		if name := (cause{user, o.cause.ID, o.cause.Source}); o.cause.Source == tokenReads &&
			!counted[name] {
			counted[name] = true
			times[user] = append(times[user], o.cause.Time)
		}
	}
	return times
}

// again reports whether s is the second call of the same try: the same token, presented again at
// once because the answer was lost.
func (s shown) again(before shown) bool {
	return s.by != nil && s.by == before.by && s.Session == before.Session &&
		s.Generation == before.Generation &&
		s.At.Sub(before.At.Add(before.Took)) < 250*time.Millisecond
}

// storm describes the first stretch with more calls than allowed, or returns an empty string if
// there was no storm.
func (a *audit) storm(times, commands []time.Time) string {
	slices.SortFunc(times, time.Time.Compare)
	for i, from := range times {
		n := within(times[i:], from, from.Add(stretch))
		if most := int(stretch/floor) + within(commands, from.Add(-answersIn), from.Add(stretch)) +
			repeated; n > most {
			return fmt.Sprintf("%d calls within %v from %s, %d at most", n, stretch,
				from.Format(clockFormat), most)
		}
	}
	return ""
}

// idle is storm for times without a fault at a server or this provider. Then a profile is asked for
// only with a renewal or a command.
func (a *audit) idle(p *standIn, times, commands, renewed []time.Time) string {
	for i, from := range times {
		n := within(times[i:], from, from.Add(stretch))
		if n <= repeated { // the usual case
			continue
		}
		most := within(renewed, from.Add(-time.Second), from.Add(stretch)) +
			within(commands, from.Add(-answersIn), from.Add(stretch)) + repeated
		if n > most && !a.disturbed(p, from.Add(-patience), from.Add(stretch), nil) {
			return fmt.Sprintf("%d calls within %v from %s, %d at most", n, stretch,
				from.Format(clockFormat), most)
		}
	}
	return ""
}

func within(times []time.Time, from, to time.Time) (n int) {
	for _, t := range times {
		if !t.Before(from) && t.Before(to) {
			n++
		}
	}
	return n
}

// renewedInTime looks for access tokens that ran out although their session went on, and how late
// the next token came, by the provider's ledger. A fault excuses a late renewal for as long as the
// fault took, and for the 10 s until a dead worker's message comes again. The sign-out of other
// users is no excuse.
func (a *audit) renewedInTime() {
	late := a.count("access tokens that ran out before they were renewed, more than what struck " +
		"meanwhile explains")
	for id, p := range a.world.providers {
		for session, list := range p.seen.bySession() {
			x := a.people.byName[id+"/"+list[0].User]
			if x == nil || x.bare {
				continue
			}
			last, known := a.people.opens[fmt.Sprint(id, session)]
			for _, this := range list {
				if this.Verdict != standin.Renewed && this.Verdict != standin.Replay {
					continue
				}
				due, end := last.Add(a.world.Life*7/10), last.Add(a.world.Life)
				if over := this.At.Sub(end); known && over > 0 &&
					!a.people.rested(x, last, this.At) &&
					over > a.excuse(p, due, this.At)+a.lostTimer(last)+a.slim(last) {
					late.add("%s of %s: got at %s, renewed at %s", x.name, id,
						last.Format(clockFormat), this.At.Format(clockFormat))
				}
				last, known = this.At, !this.Lost
			}
		}
	}
}

// lostTimer is how late a renewal may come whose timer was set at this time. All servers may have
// been killed just then, and have lost messages they had acknowledged. Then the reconciler finds
// the grant, which the audit counts as a repair.
func (a *audit) lostTimer(set time.Time) time.Duration {
	const around = 5 * time.Second
	for _, x := range a.schedule.strikes {
		if x.kind == allKilled && set.After(x.from.Add(-around)) &&
			set.Before(x.over().Add(around)) {
			return walks
		}
	}
	return 0
}

// slim is how late a renewal may come whose timer was set at this time, while the settings were
// being changed. One of the changes leaves a margin of a fiftieth of the token's life, less than a
// second, and the processes that erase people again take both cores for longer.
func (a *audit) slim(set time.Time) time.Duration {
	const busy = 10 * time.Second
	for _, x := range a.schedule.strikes {
		if x.kind == retuned && !set.Before(x.from) && set.Before(x.over()) {
			return busy
		}
	}
	return 0
}

// excuse is how late a due renewal may come.
func (a *audit) excuse(p *standIn, due, until time.Time) (sum time.Duration) {
	const again = 10 * time.Second
	for _, x := range a.schedule.strikes {
		if x.unfelt || x.provider != nil && x.provider != p || !x.from.Before(until) ||
			!x.over().Add(again).After(due) {
			continue
		}
		sum += x.over().Sub(x.from) + again
	}
	return sum
}
