package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/renewd/renewd/internal/grant"
	"github.com/renewd/renewd/internal/standin"
	"github.com/renewd/renewd/schema"
)

// replies finds the answer to each command.
type replies struct {
	audit    *audit
	said     map[string][]outcome // of a user, by when the work began
	named    map[cause][]outcome
	commands map[string][]command   // of a user
	known    map[cause]bool         // of the commands
	refused  map[string][]time.Time // when a token of a user was
}

// cause is the cause named by an outcome.
type cause struct{ user, id, source string }

func (a *audit) replies(heard []outcome, commands []command) *replies {
	s := &replies{
		audit:    a,
		said:     map[string][]outcome{},
		named:    map[cause][]outcome{},
		commands: map[string][]command{},
		known:    map[cause]bool{},
		refused:  map[string][]time.Time{},
	}
	for _, o := range heard {
		if !slices.Contains([]schema.Type{
			schema.UserSynced, schema.UserReauthRequired, schema.UserRefreshFailed,
			schema.UserForgotten, schema.MessageRejected, schema.UserSuspended,
		}, o.kind) {
			continue
		}
		key := o.provider + "/" + o.user
		s.said[key] = append(s.said[key], o)
		name := cause{key, o.cause.ID, o.cause.Source}
		s.named[name] = append(s.named[name], o)
		if o.cause.Source == tokenReads {
			s.read(a.people.byName[key], o)
		}
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
			if shown.Verdict == standin.Refused || shown.Verdict == standin.Reuse {
				key := id + "/" + shown.User
				s.refused[key] = append(s.refused[key], shown.At)
			}
		}
	}
	return s
}

// read counts a token read's renewal as a command, since the renewal may have replaced another
// command.
func (s *replies) read(x *person, o outcome) {
	c := command{
		who: x, id: o.cause.ID, source: o.cause.Source, kind: schema.UserRefreshDue,
		sent: o.cause.Time, accepted: o.cause.Time,
	}
	s.commands[o.provider+"/"+o.user] = append(s.commands[o.provider+"/"+o.user], c)
	s.known[cause{o.provider + "/" + o.user, c.id, c.source}] = true
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

// answered reports whether a command was answered. An outcome that names the command is an answer,
// and so is the erasure that removed the command. Another command of the same user may have
// replaced the command before work began, or while a refusal waited to be confirmed. Then the
// answer is the first outcome whose work began after the command was sent and which brought the
// wanted tokens. A renewal by timer answers no command.
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
		if d.id == c.id && d.source == c.source || d.kind == schema.UserSuspend ||
			!s.replaced(c, d) {
			continue
		}
		if o, ok := s.byName(d); ok && o.kind != schema.MessageRejected &&
			!o.beganAt.Before(c.sent) {
			instead = append(instead, o)
		}
	}
	instead = append(instead, s.ofUnknown(c)...)
	slices.SortFunc(instead, func(a, b outcome) int { return a.beganAt.Compare(b.beganAt) })
	return slices.ContainsFunc(instead, func(o outcome) bool { return s.audit.brings(o, c) })
}

// ofUnknown returns the outcomes of commands whose senders do not know whether they were accepted,
// since a fault took the acknowledgement. Each of these commands may have replaced c.
func (s *replies) ofUnknown(c command) (all []outcome) {
	for _, o := range s.said[c.who.key()] {
		if !grant.IsCommand(o.cause) || s.known[cause{c.who.key(), o.cause.ID, o.cause.Source}] ||
			o.kind == schema.MessageRejected || o.beganAt.Before(c.sent) {
			continue
		}
		if s.audit.trouble(c.who.provider, c.sent.Add(-patience), o.beganAt) > 0 {
			all = append(all, o)
		}
	}
	return all
}

// took reports whether the erasure told by o removed c. An erasure removes a request that came at
// any time during the erasure, and a login with an earlier place in LOGINS.
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

// begins is how soon work begins after a command was taken, without faults. beginsLate is how soon
// work begins in any case, once the faults are over.
const (
	begins     = 3 * time.Second
	beginsLate = 30 * time.Second
)

// replaced reports whether d can have replaced c before work on c began. Then d was sent soon after
// c was taken, and no other work on the user began in between. Faults allow more time, and so does
// a refusal, since the refused command waits.
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

// trouble is how long noticeable faults struck the provider, a server or a worker between two
// moments. Work also waits while most users of a provider are refused.
func (a *audit) trouble(p *standIn, from, to time.Time) (sum time.Duration) {
	for _, x := range a.schedule.strikes {
		if x.unfelt && x.kind != massSignOut || x.provider != nil && x.provider != p ||
			!x.from.Before(to) || !x.over().After(from) {
			continue
		}
		sum += min(x.over().Sub(x.from), to.Sub(from)) + time.Second
	}
	return sum
}

// brings reports whether o satisfies c. A failure always does, and so does a renewal. Any other
// success must have tokens fresh enough for c.
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

// commandsAnswered checks that each command got its due answer.
func (a *audit) commandsAnswered() {
	lost := a.count("accepted commands not answered")
	refused := a.count("commands rejected, though nothing was wrong with them")
	taken := a.count("logins with nobody's or another's tokens that were not rejected")
	s := a.replies(a.heard, a.people.commands)
	a.suspensions(s)
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
			lost.add("%s of %s at %s (%s from %s, want %q); %s", c.kind, c.who.name,
				c.accepted.Format(clockFormat), c.id, c.source, c.want,
				a.said(c.who.provider.id, c.who.name))
		}
		if c.fate == "" {
			continue
		}
		expected[cause{c.who.key(), c.id, c.source}] = true
		o, ok := s.byName(c)
		if ok && c.fate == rejected && o.kind != schema.MessageRejected &&
			o.kind != schema.UserRefreshFailed && !a.overtaken(c, o) {
			taken.add("%s at %s: %s %s", c.who.name, c.accepted.Format(clockFormat), o.kind,
				o.reason)
		}
	}
	for _, o := range a.heard {
		switch {
		case o.kind == schema.UserReauthRequired:
			a.facts.Reauth++
		case o.kind == schema.MessageRejected &&
			!expected[cause{o.provider + "/" + o.user, o.cause.ID, o.cause.Source}]:
			refused.add("%s: %s for %s at %s; the provider knew the tokens of its calls at %s",
				o.user, o.reason, o.cause.ID,
				o.heard.Format(clockFormat), a.callsBefore(o))
		}
	}
}

// overtaken reports whether a newer login of the user was taken before a login had its turn. The
// newer login's outcome then answers both.
func (a *audit) overtaken(c command, o outcome) bool {
	return slices.ContainsFunc(a.people.commands, func(newer command) bool {
		return newer.kind == schema.UserLogin && newer.fate == "" && newer.who == c.who &&
			newer.sequence > c.sequence && newer.accepted.Before(o.heard)
	})
}

// callsBefore are the times in the minute before a rejection at which the provider was asked for
// the user's profile with an access token known to the provider.
func (a *audit) callsBefore(o outcome) (at []string) {
	p := a.world.providers[o.provider]
	if p == nil {
		return nil
	}
	for _, t := range p.asked.byUser()[o.user] {
		if t.Before(o.heard) && o.heard.Sub(t) < time.Minute {
			at = append(at, t.Format(clockFormat))
		}
	}
	return at
}

// endedSessions returns the sessions with a token refused by the provider itself, by provider and
// number.
func (a *audit) endedSessions() map[string]bool {
	if a.ended != nil {
		return a.ended
	}
	a.ended = map[string]bool{}
	for id, p := range a.world.providers {
		for n, list := range p.seen.bySession() {
			if slices.ContainsFunc(list, func(p shown) bool {
				return p.Verdict == standin.Refused || p.Verdict == standin.Reuse
			}) {
				a.ended[fmt.Sprint(id, n)] = true
			}
		}
	}
	return a.ended
}

// unprovable reports whether a login was rejected because its proof had become impossible: the
// provider had ended the session, the access token had run out and there was no refresh token, or
// the user was suspended before the proof. A failure may have been told before, while the login was
// held.
func (a *audit) unprovable(c command) bool {
	if c.kind != schema.UserLogin {
		return false
	}
	session := fmt.Sprint(c.who.provider.id, c.session)
	ended := a.endedSessions()[session]
	rests := a.suspensionsAfter(c)
	if !ended && !c.who.bare && len(rests) == 0 {
		return false
	}
	o, ok := a.naming(c, func(o outcome) bool {
		return o.kind == schema.MessageRejected && o.reason == schema.RejectUnproven
	})
	if ok && slices.ContainsFunc(rests, func(at time.Time) bool {
		return at.Before(o.heard) && o.heard.Sub(at) < beginsLate
	}) {
		return true
	}
	// In a session without a refresh token, no token was presented for the provider to refuse.
	ended = ended || slices.ContainsFunc(c.who.ended, func(at time.Time) bool {
		return at.After(a.people.opens[session]) && at.Before(o.heard)
	})
	return ok && (ended || o.heard.Sub(c.tried) > a.world.Life-2*time.Second)
}

// suspensionsAfter are the times at which suspensions of the user were taken after a login.
func (a *audit) suspensionsAfter(c command) (at []time.Time) {
	for _, d := range a.people.commands {
		if d.kind == schema.UserSuspend && d.who == c.who && d.sequence > c.sequence {
			at = append(at, d.accepted)
		}
	}
	return at
}

// onOlder reports whether a user rightly goes on with the session before the newest login's. Going
// on is right if the newest login was rejected as unproven or displaced, and the provider honours
// the stored session.
func (a *audit) onOlder(x *person, g grant.Grant) bool {
	return (a.unprovable(x.login) || a.displaced(x)) && g.Status == grant.Live &&
		x.provider.Valid(g.Pair.Refresh.Reveal())
}

// naming is the first outcome that names a command and satisfies such.
func (a *audit) naming(c command, such func(outcome) bool) (outcome, bool) {
	i := slices.IndexFunc(a.heard, func(o outcome) bool {
		return o.provider+"/"+o.user == c.who.key() && names(o, c) && such(o)
	})
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
