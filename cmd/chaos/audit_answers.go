package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/idp/idptest"
	"github.com/renewd/renewd/schema"
)

// replies finds what became of each command.
type replies struct {
	audit    *audit
	said     map[string][]outcome // of a user, by when the work began
	named    map[cause][]outcome
	commands map[string][]command   // of a user
	known    map[cause]bool         // of the commands
	refused  map[string][]time.Time // when a token of a user was
}

// cause is what an outcome names.
type cause struct{ user, id, source string }

func (a *audit) replies(heard []outcome, commands []command) *replies {
	s := &replies{
		audit: a, said: map[string][]outcome{}, named: map[cause][]outcome{}, commands: map[string][]command{}, known: map[cause]bool{},
		refused: map[string][]time.Time{},
	}
	for _, o := range heard {
		if !slices.Contains([]schema.Type{
			schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed, schema.UserForgotten, schema.MessageRejected,
		}, o.kind) {
			continue
		}
		key := o.provider + "/" + o.user
		s.said[key] = append(s.said[key], o)
		name := cause{key, o.cause.ID, o.cause.Source}
		s.named[name] = append(s.named[name], o)
	}
	for _, said := range s.said {
		slices.SortStableFunc(said, func(a, b outcome) int { return a.beganAt.Compare(b.beganAt) })
	}
	for _, c := range commands {
		s.commands[c.who.key()] = append(s.commands[c.who.key()], c)
		s.known[cause{c.who.key(), c.id, c.source}] = true
	}
	for id, p := range a.world.providers {
		for _, shown := range p.seen.list() {
			if shown.Verdict == idptest.Refused || shown.Verdict == idptest.Reuse {
				key := id + "/" + shown.User
				s.refused[key] = append(s.refused[key], shown.At)
			}
		}
	}
	return s
}

// names reports whether an outcome names a command.
func names(o outcome, c command) bool { return o.cause.ID == c.id && o.cause.Source == c.source }

// byName is the outcome that names a command.
func (s *replies) byName(c command) (outcome, bool) {
	all := s.named[cause{c.who.key(), c.id, c.source}]
	if len(all) == 0 {
		return outcome{}, false
	}
	return all[0], true
}

// answered reports whether a command was answered: by an outcome that names it, by the erasure that
// took it away, or, if another command of the same user took its place before work began, or while
// it waited for a refusal to be confirmed, by the first outcome of work that began no earlier than
// the command was taken and brought what was wanted. A renewal by timer answers nobody.
func (s *replies) answered(c command) bool {
	if _, ok := s.byName(c); ok {
		return true
	}
	for _, o := range s.said[c.who.key()] {
		if o.kind == schema.UserForgotten && s.audit.took(o, c) {
			return true
		}
	}
	var instead []outcome
	for _, d := range s.commands[c.who.key()] {
		if d.id == c.id && d.source == c.source || !s.replaced(c, d) {
			continue
		}
		if o, ok := s.byName(d); ok && o.kind != schema.MessageRejected && !o.beganAt.Before(c.sent) {
			instead = append(instead, o)
		}
	}
	instead = append(instead, s.ofUnknown(c)...)
	slices.SortFunc(instead, func(a, b outcome) int { return a.beganAt.Compare(b.beganAt) })
	return slices.ContainsFunc(instead, func(o outcome) bool { return s.audit.brings(o, c) })
}

// ofUnknown are the outcomes of commands of which their senders do not know that they were accepted,
// since a fault took the acknowledgement: each may have taken c's place.
func (s *replies) ofUnknown(c command) (all []outcome) {
	for _, o := range s.said[c.who.key()] {
		if !grant.IsCommand(o.cause) || s.known[cause{c.who.key(), o.cause.ID, o.cause.Source}] || o.kind == schema.MessageRejected || o.beganAt.Before(c.sent) {
			continue
		}
		if s.audit.trouble(c.who.provider, c.sent.Add(-patience), o.beganAt) > 0 {
			all = append(all, o)
		}
	}
	return all
}

// took reports whether the erasure that o tells of removed c: a request that came at any time of
// it, and a login that came before it in LOGINS.
func (a *audit) took(o outcome, c command) bool {
	if !o.beganAt.Before(c.sent) {
		return true
	}
	if c.kind == schema.UserLogin {
		return a.people.took(c.id)
	}
	return !o.heard.Before(c.sent)
}

func (p *people) took(login string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.swept[login]
}

// Work begins this soon after a command was taken while nothing is out of order; and this soon in
// any case after things are in order again.
const (
	begins     = 3 * time.Second
	beginsLate = 30 * time.Second
)

// replaced reports whether d can have taken the place of c before work on c began: d was taken
// before that, and no other work on the user began in between, unless something was out of order. A
// command whose work was refused waits too.
func (s *replies) replaced(c, d command) bool {
	between := d.sent.Sub(c.accepted)
	trouble := s.audit.trouble(c.who.provider, c.sent.Add(-patience), cmp.Or(d.accepted, d.sent))
	if trouble > 0 || within(s.refused[c.who.key()], c.sent, d.sent) > 0 {
		return between < beginsLate+2*trouble
	}
	return between < begins && !slices.ContainsFunc(s.said[c.who.key()], func(o outcome) bool {
		return o.beganAt.After(c.accepted.Add(begins)) && o.beganAt.Before(d.sent)
	})
}

// trouble is how long anything that may be felt struck the provider, a server or a worker between
// two moments. Work waits too while most users of a provider are refused.
func (a *audit) trouble(p *standIn, from, to time.Time) (sum time.Duration) {
	for _, x := range a.schedule.strikes {
		if x.unfelt && x.kind != massSignOut || x.provider != nil && x.provider != p || !x.from.Before(to) || !x.over().After(from) {
			continue
		}
		sum += min(x.over().Sub(x.from), to.Sub(from)) + time.Second
	}
	return sum
}

// brings reports whether o is what c wanted: a failure says so, a success must be of tokens fresh
// enough.
func (a *audit) brings(o outcome, c command) bool {
	if o.kind != schema.UserSynced || o.refreshed {
		return true
	}
	const early = 2 * time.Second // a token's life is told in whole seconds
	switch {
	case c.want == schema.WantTokens:
		return !o.expiresAt.Before(c.sent.Add(a.world.Life - early))
	case c.minValid > 0:
		return o.expiresAt.Sub(o.heard) >= c.minValid-early
	}
	return true
}

// commandsAnswered looks whether each one was answered, and as it had to be.
func (a *audit) commandsAnswered() {
	lost := a.count("accepted commands not answered")
	refused := a.count("commands rejected, though nothing was wrong with them")
	taken := a.count("logins with nobody's or another's tokens that were not rejected")
	s := a.replies(a.heard, a.people.commands)
	a.facts.Commands = len(a.people.commands)
	expected := map[cause]bool{}
	for _, c := range a.people.commands {
		if c.fate == "" && a.unprovable(c) {
			expected[cause{c.who.key(), c.id, c.source}] = true
		}
		if c.kind == schema.UserLogin {
			a.facts.Logins++
		}
		if !s.answered(c) {
			lost.add("%s of %s at %s (%s from %s, want %q); %s", c.kind, c.who.name, c.accepted.Format(clockFormat), c.id, c.source, c.want, a.said(c.who.provider.id, c.who.name))
		}
		if c.fate == "" {
			continue
		}
		expected[cause{c.who.key(), c.id, c.source}] = true
		if o, ok := s.byName(c); ok && c.fate == rejected && o.kind != schema.MessageRejected && o.kind != schema.UserRefreshFailed {
			taken.add("%s at %s: %s %s", c.who.name, c.accepted.Format(clockFormat), o.kind, o.reason)
		}
	}
	for _, o := range a.heard {
		switch {
		case o.kind == schema.UserReauthRequired:
			a.facts.Reauth++
		case o.kind == schema.MessageRejected && !expected[cause{o.provider + "/" + o.user, o.cause.ID, o.cause.Source}]:
			refused.add("%s: %s", o.user, o.reason)
		}
	}
}

// endedSessions are those of which the provider refused a token by its own word, by provider and
// number.
func (a *audit) endedSessions() map[string]bool {
	if a.ended != nil {
		return a.ended
	}
	a.ended = map[string]bool{}
	for id, p := range a.world.providers {
		for n, list := range p.seen.bySession() {
			if slices.ContainsFunc(list, func(p shown) bool { return p.Verdict == idptest.Refused || p.Verdict == idptest.Reuse }) {
				a.ended[fmt.Sprint(id, n)] = true
			}
		}
	}
	return a.ended
}

// unprovable reports whether a login was rejected when nobody could have proven it any more: the
// provider had ended its session, or the access token had run out and there was no other. A failure
// may have been told before, while it was held.
func (a *audit) unprovable(c command) bool {
	ended := a.endedSessions()[fmt.Sprint(c.who.provider.id, c.session)]
	if c.kind != schema.UserLogin || !ended && !c.who.bare {
		return false
	}
	o, ok := a.naming(c, func(o outcome) bool { return o.kind == schema.MessageRejected && o.reason == schema.RejectUnproven })
	return ok && (ended || o.heard.Sub(c.tried) > a.world.Life-2*time.Second)
}

// onOlder reports whether a user goes on with the session before the newest login's, as is right
// where that one could not be proven: its login was rejected, and the provider honours what is
// stored.
func (a *audit) onOlder(x *person, g grant.Grant) bool {
	return a.unprovable(x.login) && g.Status == grant.Live && x.provider.Valid(g.Pair.Refresh.Reveal())
}

// naming is the first outcome that names a command and is such a one.
func (a *audit) naming(c command, such func(outcome) bool) (outcome, bool) {
	i := slices.IndexFunc(a.heard, func(o outcome) bool { return o.provider+"/"+o.user == c.who.key() && names(o, c) && such(o) })
	if i < 0 {
		return outcome{}, false
	}
	return a.heard[i], true
}

// unanswered counts the commands that have no answer yet.
func (a *audit) unanswered(w *witness) (n int) {
	w.mu.Lock()
	heard := slices.Clone(w.heard)
	w.mu.Unlock()
	a.people.mu.Lock()
	commands := slices.Clone(a.people.commands)
	a.people.mu.Unlock()
	s := a.replies(heard, commands)
	for _, c := range commands {
		if !s.answered(c) {
			n++
		}
	}
	return n
}
