package main

import (
	"context"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/publishers"
	"github.com/renewd/renewd/schema"
)

// suspension is a time for which an app had a person suspended. It begins when services were told
// so, and ends when the app resumes the person.
type suspension struct {
	who     *person
	suspend command
	resume  command
}

// suspendUsers has people suspended for some seconds, who are asked for meanwhile.
func suspendUsers(ctx context.Context, x *strike) error {
	x.unfelt = true
	victims := x.people.some(x.rand, x.count(6, 12))
	pauses := map[*person]time.Duration{}
	for _, v := range victims {
		pauses[v] = x.between(2*time.Second, 12*time.Second)
	}
	done := context.WithoutCancel(ctx)
	x.people.eachOf(victims, 6, func(v *person) {
		if ctx.Err() == nil && v.accepted && v.answered && !v.erased && !v.unsure {
			x.people.suspend(done, v, pauses[v])
		}
	})
	return nil
}

// suspend has a person suspended, asks for tokens, and has the person resumed after the pause. The
// caller holds v.mu.
func (p *people) suspend(ctx context.Context, v *person, pause time.Duration) {
	s := suspension{who: v}
	by := p.apps[0]
	hold := func(
		kind schema.Type, publish func(context.Context, ...publishers.EventOption) (
			publishers.Receipt, error),
	) command {
		c := command{who: v, id: newID(kind), source: by.source, kind: kind}
		c, _ = p.persist(ctx, c, func(ctx context.Context) (publishers.Receipt, error) {
			return publish(ctx, publishers.WithID(c.id))
		})
		return c
	}
	s.suspend = hold(schema.UserSuspend, func(
		ctx context.Context, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return by.Suspend(ctx, v.provider.id, v.name, schema.Suspend{Reason: "chaos"}, o...)
	})
	p.ask(ctx, v, p.apps[1], newID(schema.UserRefreshDue), schema.RefreshDue{
		Want: schema.WantTokens,
	})
	<-time.After(pause)
	s.resume = hold(schema.UserResume, func(
		ctx context.Context, o ...publishers.EventOption,
	) (publishers.Receipt, error) {
		return by.Resume(ctx, v.provider.id, v.name, schema.Resume{Reason: "chaos"}, o...)
	})
	p.mu.Lock()
	p.suspensions = append(p.suspensions, s)
	p.mu.Unlock()
}

// suspended is when services knew that a person was suspended, and until when surely so. ok is
// false where nothing was told before the end.
func (s suspension) suspended(answers *replies) (from, to time.Time, ok bool) {
	o, there := answers.byName(s.suspend)
	from, to = o.heard, s.resume.tried
	return from, to, there && o.kind == schema.UserSuspended && from.Before(to)
}

// suspensions checks that nothing was done with the tokens of people while they were suspended. A
// presentation that was under way may end.
func (a *audit) suspensions(answers *replies) {
	shown := a.count("refresh tokens presented of people who were suspended")
	read := a.count("access tokens read of people who were suspended")
	presented := map[string][]standin.Presentation{}
	for id, p := range a.world.providers {
		for _, this := range p.seen.list() {
			if !a.thawed(this) {
				key := id + "/" + this.User
				presented[key] = append(presented[key], this.Presentation)
			}
		}
	}
	for _, s := range a.people.suspensions {
		from, to, ok := s.suspended(answers)
		if !ok {
			continue
		}
		a.facts.Suspended++
		for _, this := range presented[s.who.key()] {
			if this.At.After(from.Add(reactionLate)) && this.At.Before(to) {
				shown.add("%s of %s at %s, suspended from %s to %s", s.who.name, s.who.provider.id,
					this.At.Format(clockFormat), from.Format(clockFormat), to.Format(clockFormat))
			}
		}
		for _, t := range a.read.read {
			if t.who == s.who && t.sent.After(from) && t.sent.Before(to) {
				read.add("%s; suspended from %s to %s", t, from.Format(clockFormat),
					to.Format(clockFormat))
			}
		}
	}
}

// rested reports whether a person may have been suspended at some time from one moment to another.
func (p *people) rested(x *person, from, to time.Time) bool {
	return slices.ContainsFunc(p.suspensions, func(s suspension) bool {
		return s.who == x && s.suspend.tried.Before(to) &&
			s.resume.accepted.Add(beginsLate).After(from)
	})
}
