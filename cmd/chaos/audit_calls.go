package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/renewd/renewd/internal/idp/idptest"
)

// calls are all userinfo calls that one provider was asked.
type calls struct {
	mu  sync.Mutex
	all []idptest.Call
}

func (c *calls) add(one idptest.Call) {
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
// for each command, and a few for deliveries that were tried again.
const (
	stretch   = 5 * time.Second
	repeated  = 3
	answersIn = 15 * time.Second // so long after a command the call for it may come
)

// callsBounded looks for storms: users whom a provider is asked for more often than anybody wants.
func (a *audit) callsBounded() {
	tokens := a.count("users whose tokens were presented more often than the policy's floor allows")
	profiles := a.count("users whose profile was asked for more often than the policy's floor allows")
	idle := a.count("users whose profile was asked for more often than renewals and commands account for, in calm")
	commands := map[string][]time.Time{}
	for _, c := range a.people.commands {
		commands[c.who.key()] = append(commands[c.who.key()], c.sent)
	}
	for id, p := range a.world.providers {
		presented, renewed := map[string][]time.Time{}, map[string][]time.Time{}
		latest := map[string]shown{}
		for _, shown := range p.seen.list() {
			before := latest[shown.User]
			if latest[shown.User] = shown; !shown.again(before) {
				presented[shown.User] = append(presented[shown.User], shown.At)
			}
			if shown.Verdict == idptest.Renewed {
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

// again reports whether s is the second call of one try: the same token once more, at once, since the
// answer was lost.
func (s shown) again(before shown) bool {
	return s.by != nil && s.by == before.by && s.Session == before.Session && s.Generation == before.Generation &&
		s.At.Sub(before.At.Add(before.Took)) < 250*time.Millisecond
}

// storm tells of the first stretch in which there were more calls than one for each floor; empty:
// there is none.
func (a *audit) storm(times, commands []time.Time) string {
	slices.SortFunc(times, time.Time.Compare)
	for i, from := range times {
		n := within(times[i:], from, from.Add(stretch))
		if most := int(stretch/floor) + within(commands, from.Add(-answersIn), from.Add(stretch)) + repeated; n > most {
			return fmt.Sprintf("%d calls within %v from %s, %d at most", n, stretch, from.Format(clockFormat), most)
		}
	}
	return ""
}

// idle is storm for times at which no server and no provider was out of order, when a profile is
// asked for with a renewal or a command alone.
func (a *audit) idle(p *standIn, times, commands, renewed []time.Time) string {
	for i, from := range times {
		n := within(times[i:], from, from.Add(stretch))
		if n <= repeated { // most are
			continue
		}
		most := within(renewed, from.Add(-time.Second), from.Add(stretch)) + within(commands, from.Add(-answersIn), from.Add(stretch)) + repeated
		if n > most && !a.disturbed(p, from.Add(-patience), from.Add(stretch), nil) {
			return fmt.Sprintf("%d calls within %v from %s, %d at most", n, stretch, from.Format(clockFormat), most)
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

// renewedInTime looks for access tokens that ran out although their session went on: how late the
// next one came, by the provider's ledger. What struck meanwhile is an excuse for as long as it
// took, and for the 10 s until a dead worker's message comes again. That others were signed out is
// none.
func (a *audit) renewedInTime() {
	late := a.count("access tokens that ran out before they were renewed, more than what struck meanwhile explains")
	for id, p := range a.world.providers {
		for session, list := range p.seen.bySession() {
			x := a.people.byName[id+"/"+list[0].User]
			if x == nil || x.bare {
				continue
			}
			last, known := a.people.opens[fmt.Sprint(id, session)]
			for _, this := range list {
				if this.Verdict != idptest.Renewed && this.Verdict != idptest.Replay {
					continue
				}
				due, end := last.Add(a.world.Life*7/10), last.Add(a.world.Life)
				if over := this.At.Sub(end); known && over > 0 && over > a.excuse(p, due, this.At) {
					late.add("%s of %s: got at %s, renewed at %s", x.name, id, last.Format(clockFormat), this.At.Format(clockFormat))
				}
				last, known = this.At, !this.Lost
			}
		}
	}
}

// excuse is how late a renewal that was due may come.
func (a *audit) excuse(p *standIn, due, until time.Time) (sum time.Duration) {
	const again = 10 * time.Second
	for _, x := range a.schedule.strikes {
		if x.unfelt || x.provider != nil && x.provider != p || !x.from.Before(until) || !x.over().Add(again).After(due) {
			continue
		}
		sum += x.over().Sub(x.from) + again
	}
	return sum
}
